"""The gRPC server: its streams, its health, its start and its end."""

import asyncio
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from app.rpc import open_inference_pb2 as pb
from app.rpc.streams import in_order
from tests.api.harness import SECONDS, Api
from tests.api.rpc import PREFIX, asked, call, refused, running_rpc, serving_net
from tests.running import clean_environment, free_port, wait_until


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving_net(tmp_path_factory.mktemp("rpc")) as running:
        yield running


@pytest.fixture(scope="module")
def channel(serving: Api) -> Iterator[grpc.Channel]:
    with running_rpc(serving) as address, grpc.insecure_channel(address) as opened:
        yield opened


# Streams


def streamed(channel: grpc.Channel, requests: Iterator[pb.ModelInferRequest]) -> Any:
    method: Any = channel.stream_stream(
        PREFIX + "ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    return method(requests, timeout=SECONDS)


def test_a_stream_is_answered_in_order_and_goes_on_after_a_failure(channel: grpc.Channel) -> None:
    requests = [asked(id=str(number), **({"model_name": "nothing"} if number == 3 else {})) for number in range(40)]
    answers = list(streamed(channel, iter(requests)))
    assert [answer.infer_response.id for answer in answers] == [request.id for request in requests]
    assert [bool(answer.error_message) for answer in answers] == [number == 3 for number in range(40)]


def test_answers_keep_their_order_whatever_takes_longest() -> None:
    async def answer(number: int, events: list[asyncio.Event]) -> int:
        await events[number].wait()
        return number

    async def ordered() -> list[int]:
        events = [asyncio.Event() for _ in range(8)]

        async def numbers() -> AsyncIterator[int]:
            for number in range(8):
                yield number
            for event in reversed(events):
                event.set()

        return [number async for number in in_order(numbers(), lambda number: answer(number, events), ahead=9)]

    assert asyncio.run(ordered()) == list(range(8))


def test_no_more_is_read_than_is_worked_on() -> None:
    async def most() -> int:
        read, enough = 0, asyncio.Event()

        async def numbers() -> AsyncIterator[int]:
            nonlocal read
            for number in range(100):
                read += 1
                yield number

        async def answer(_number: int) -> None:
            enough.set()
            await asyncio.Event().wait()

        answers = in_order(numbers(), answer, ahead=4)
        first = asyncio.ensure_future(anext(answers))
        await asyncio.wait_for(enough.wait(), SECONDS)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return read

    assert asyncio.run(most()) <= 4


# Health


def health_of(channel: grpc.Channel, service: str) -> int:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
    return int(answer.status)


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "net", "net@float32"])
def test_the_server_and_its_models_are_healthy(channel: grpc.Channel, service: str) -> None:
    assert health_of(channel, service) == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("service", ["nothing", "net@int8", "/etc/passwd"])
def test_the_health_of_nothing_is_not_found(channel: grpc.Channel, service: str) -> None:
    with refused(StatusCode.NOT_FOUND, "no service and no model"):
        health_of(channel, service)


def test_a_model_that_cannot_answer_is_not_healthy(api: Api) -> None:
    api.upload_model("waiting")
    with running_rpc(api) as address, grpc.insecure_channel(address) as own:
        assert health_of(own, "waiting") == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_watch_tells_that_the_process_stops_and_ends(api: Api) -> None:
    with running_rpc(api) as address, grpc.insecure_channel(address) as own:
        watch = health_pb2_grpc.HealthStub(own).Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        stop(api)
        assert [answer.status for answer in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]
        wait_until(lambda: not listens(address), what="no more calls are taken")


def test_watches_take_no_room_from_inference_and_have_a_limit_of_their_own(serving: Api) -> None:
    with (
        running_rpc(serving, most_calls=1, most_health_calls=2, stop_seconds=0.1) as address,
        grpc.insecure_channel(address) as own,
    ):
        stub = health_pb2_grpc.HealthStub(own)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS) for _ in range(2)]
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        call(own, "ModelInfer", asked())
        with refused(StatusCode.RESOURCE_EXHAUSTED, "2 calls of the health service"):
            health_of(own, "")
        for watch in watches:
            watch.cancel()


def test_a_server_whose_store_is_gone_is_not_healthy(api: Api) -> None:
    with running_rpc(api) as address, grpc.insecure_channel(address) as own:
        shutil.rmtree(api.store_folder)
        api.store_folder.write_text("a file, where a folder should be")
        wait_until(lambda: health_of(own, "") == health_pb2.HealthCheckResponse.NOT_SERVING, what="it is not healthy")


# Start and end


def stop(api: Api) -> None:
    """Do what SIGTERM does first."""
    api.loop.call_soon_threadsafe(api.services.stopping.set)


def test_a_request_that_comes_while_the_process_stops_is_refused_as_clients_understand_it(api: Api) -> None:
    with running_rpc(api) as address, grpc.insecure_channel(address) as own:
        stop(api)
        with refused(StatusCode.UNAVAILABLE, "is stopping") as trailers:
            wait_until(lambda: is_not_found(own), seconds=SECONDS)
    assert trailers["grpc-retry-pushback-ms"] == "1000"


def is_not_found(channel: grpc.Channel) -> None:
    """Ask a model that is not there; whatever else is wrong is raised."""
    try:
        call(channel, "ModelInfer", asked())
    except grpc.RpcError as error:
        if error.code() is not StatusCode.NOT_FOUND:
            raise


def test_an_idle_stream_ends_when_the_process_stops(api: Api) -> None:
    over = threading.Event()

    def nothing() -> Iterator[pb.ModelInferRequest]:
        over.wait(SECONDS)
        yield from ()

    with running_rpc(api) as address, grpc.insecure_channel(address) as own:
        answers = streamed(own, nothing())
        stop(api)
        assert list(answers) == []
        over.set()


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_a_port_that_is_taken_fails_the_start(serving: Api) -> None:
    port = free_port()
    with (
        running_rpc(serving, port=port),
        pytest.raises(OSError, match="OCTET_GRPC_PORT"),
        running_rpc(serving, port=port),
    ):
        raise AssertionError("two servers listen on one port")


def test_processes_that_share_a_port_all_listen_on_it(serving: Api) -> None:
    port = free_port()
    with (
        running_rpc(serving, port=port, shared=True),
        running_rpc(serving, port=port, shared=True) as address,
        grpc.insecure_channel(address) as own,
    ):
        assert health_of(own, "") == health_pb2.HealthCheckResponse.SERVING


def test_without_a_port_nothing_of_grpc_is_imported() -> None:
    program = "import sys, app.main; sys.exit(any(name.split('.')[0] == 'grpc' for name in sys.modules))"
    subprocess.run([sys.executable, "-c", program], check=True, env=clean_environment(), timeout=SECONDS)
