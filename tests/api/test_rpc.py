"""The protocol over gRPC, message by message: its description, its errors, what may be sent, and for how long."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc import StatusCode
from grpc_tools import protoc
from tritonclient.grpc import service_pb2 as others

from app.domain.errors import OctetError, TooMany, Unavailable, tree
from app.rpc import calls
from app.rpc import open_inference_pb2 as pb
from app.rpc.statuses import PUSHBACK, TABLE, status_of, trailers_of
from tests.api.harness import SECONDS, Api
from tests.api.rpc import PREFIX, ROWS, asked, call, in_flight, logits, refused, running_rpc, serving_net
from tests.running import holds, wait_until


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving_net(tmp_path_factory.mktemp("rpc")) as running:
        yield running


@pytest.fixture(scope="module")
def channel(serving: Api) -> Iterator[grpc.Channel]:
    with running_rpc(serving) as address, grpc.insecure_channel(address) as opened:
        yield opened


# The description


def described(message: Descriptor) -> Iterator[Descriptor]:
    yield message
    for nested in message.nested_types:
        yield from described(nested)


def field_facts(field: FieldDescriptor) -> tuple[Any, ...]:
    kind = None if field.message_type is None else field.message_type.full_name
    oneof = None if field.containing_oneof is None else field.containing_oneof.name
    return field.name, field.number, field.type, field.is_repeated, kind, oneof


def method_facts(method: MethodDescriptor) -> tuple[Any, ...]:
    ends = method.input_type.full_name, method.output_type.full_name
    return method.name, *ends, method.client_streaming, method.server_streaming


def messages(file: FileDescriptor) -> list[Descriptor]:
    return [found for top in file.message_types_by_name.values() for found in described(top)]


def file_facts(file: FileDescriptor) -> Any:
    fields = {message.full_name: list(map(field_facts, message.fields)) for message in messages(file)}
    services = {name: list(map(method_facts, service.methods)) for name, service in file.services_by_name.items()}
    return fields, services


MESSAGES = messages(pb.DESCRIPTOR)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.full_name)
def test_every_message_is_the_protocols(message: Descriptor) -> None:
    theirs = others.DESCRIPTOR.pool.FindMessageTypeByName(message.full_name)
    assert list(map(field_facts, message.fields)) == list(map(field_facts, theirs.fields))


def test_every_method_is_the_protocols() -> None:
    ours = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    theirs = others.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method_facts(method) for method in ours.methods} < {method_facts(method) for method in theirs.methods}


def test_the_classes_are_made_of_the_description(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    made = tmp_path / "made.binpb"
    arguments = [f"-I{root}", f"--descriptor_set_out={made}", str(root / "app/rpc/open_inference.proto")]
    assert protoc.main(["protoc", *arguments]) == 0
    (file,) = FileDescriptorSet.FromString(made.read_bytes()).file
    assert file_facts(DescriptorPool().AddSerializedFile(file.SerializeToString())) == file_facts(pb.DESCRIPTOR)


# Errors


@pytest.mark.parametrize("error", tree(), ids=lambda error: error.__name__)
def test_every_error_has_a_status(error: type[OctetError]) -> None:
    assert error is OctetError or any(parent in TABLE for parent in error.__mro__ if parent is not OctetError)
    assert status_of(error) is not StatusCode.OK


def test_only_errors_that_pass_say_when_to_try_again() -> None:
    pushed = {error for error in tree() if PUSHBACK in dict(trailers_of(error("why")))}
    assert pushed == {*tree(TooMany), *tree(Unavailable)}


def test_an_error_brings_its_code_and_the_id_of_its_request(channel: grpc.Channel) -> None:
    with refused(StatusCode.NOT_FOUND, "There is no model 'nothing'") as trailers:
        call(channel, "ModelInfer", asked(model_name="nothing"), metadata=[("x-request-id", "my-request.7")])
    assert (trailers["octet-code"], trailers["x-request-id"]) == ("model_not_found", "my-request.7")


def test_an_insane_request_id_is_replaced(channel: grpc.Channel) -> None:
    with refused(StatusCode.NOT_FOUND) as trailers:
        call(channel, "ModelInfer", asked(model_name="nothing"), metadata=[("x-request-id", 'a" b')])
    assert len(trailers["x-request-id"]) == 32


def test_a_bug_tells_the_client_nothing_but_an_id(caplog: pytest.LogCaptureFixture) -> None:
    async def behave(_asked: bytes, _call: calls.Call) -> bytes:
        raise ValueError("a secret")

    with refused(StatusCode.INTERNAL, "because of a bug") as trailers:
        asyncio.run(_called(behave))
    assert trailers["octet-code"] == "internal_error"
    assert "a secret" in caplog.text
    assert trailers["x-request-id"] in [getattr(record, "octet", {}).get("request_id") for record in caplog.records]


async def _called(behaviour: calls.Unary[bytes, bytes]) -> None:
    """Call a method of a server that has no other."""
    server, quota = grpc.aio.server(), calls.Quota(1, what="calls", advice="make fewer")
    handler: Any = grpc.stream_unary_rpc_method_handler(calls.unary("Call", behaviour, seconds=SECONDS, quota=quota))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", {"Call": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method: Any = channel.unary_unary("/a.Service/Call")
            await method(b"", timeout=SECONDS)
    finally:
        await server.stop(None)


# What is sent

FP32: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": ROWS.shape}
Tensor, Contents = pb.ModelInferRequest.InferInputTensor, pb.InferTensorContents

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model_name": ""}, "is not a reference"),
    ({"model_name": "net@"}, "is not a reference"),
    ({"model_version": "one"}, "whole number"),
    ({"model_name": "net:1", "model_version": "2"}, "whole number"),
    ({"inputs": []}, "0 inputs, but 1 raw_input_contents"),
    ({"inputs": [], "raw_input_contents": []}, "is missing"),
    ({"raw_input_contents": [b""]}, "brings 0 bytes"),
    ({"raw_input_contents": [ROWS.tobytes() + b"\0"]}, "brings 1537 bytes"),
    ({"raw_input_contents": [ROWS.tobytes()] * 2}, "2 raw_input_contents"),
    ({"inputs": [Tensor(**FP32 | {"name": "y"})]}, "has no input 'y'"),
    ({"inputs": [Tensor(**FP32 | {"datatype": "FP16"})]}, "the model takes FP32"),
    ({"inputs": [Tensor(**FP32 | {"datatype": "F" * 10_000})]}, "the model takes FP32"),
    ({"inputs": [Tensor(**FP32 | {"shape": (-2, 3, 8, 8)})]}, "no array can have"),
    ({"inputs": [Tensor(**FP32 | {"shape": (2**62, 2**62, 8, 8)})]}, "no array can have"),
    ({"inputs": [Tensor(**FP32)] * 2, "raw_input_contents": [ROWS.tobytes()] * 2}, "an input twice"),
    ({"inputs": [Tensor(**FP32, contents=Contents(fp32_contents=[1]))]}, "in one of the ways"),
    ({"inputs": [Tensor(**FP32)], "raw_input_contents": []}, "has 0 elements"),
    ({"inputs": [Tensor(**FP32, contents=Contents(int_contents=[1]))], "raw_input_contents": []}, "fp32_contents"),
    ({"inputs": [Tensor(**FP32 | {"datatype": "FP16"})], "raw_input_contents": []}, "the model takes FP32"),
    ({"inputs": [Tensor(**FP32 | {"datatype": "BYTES"})], "raw_input_contents": [b"\xff\xff\xff\xff"]}, "images"),
    ({"outputs": [pb.ModelInferRequest.InferRequestedOutputTensor(name="z")]}, "has no output 'z'"),
    ({"parameters": {"priority": pb.InferParameter(int64_param=-1)}}, "priority"),
    ({"parameters": {"timeout": pb.InferParameter(string_param="soon")}}, "timeout"),
    ({"parameters": {"sequence_id": pb.InferParameter(int64_param=3)}}, "sequence"),
]


@pytest.mark.parametrize(("members", "words"), WRONG, ids=[f"{number}" for number in range(len(WRONG))])
def test_what_does_not_fit_is_the_callers_mistake(channel: grpc.Channel, members: dict[str, Any], words: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, words):
        call(channel, "ModelInfer", asked(**members))


def test_typed_contents_are_answered_like_raw_ones(channel: grpc.Channel) -> None:
    typed = Tensor(**FP32, contents=Contents(fp32_contents=ROWS.reshape(-1).tolist()))
    answer = call(channel, "ModelInfer", asked(inputs=[typed], raw_input_contents=[]))
    assert logits(answer).tolist() == logits(call(channel, "ModelInfer", asked())).tolist()


def test_an_affinity_that_is_none_is_the_callers_mistake(channel: grpc.Channel) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "Octet-Affinity"):
        call(channel, "ModelInfer", asked(), metadata=[("octet-affinity", "k" * 257)])


def test_an_answer_says_who_gave_it_and_how_long_it_took(channel: grpc.Channel) -> None:
    answer = call(channel, "ModelInfer", asked(model_name="net@float32", model_version="1", id="seven"))
    assert (answer.model_name, answer.model_version, answer.id) == ("net", "1", "seven")
    assert answer.parameters["octet_variant"].string_param == "float32"
    assert answer.parameters["octet_compute_ms"].double_param > 0


def test_classes_are_named_on_request(channel: grpc.Channel) -> None:
    wanted = pb.ModelInferRequest.InferRequestedOutputTensor(name="logits")
    wanted.parameters["classification"].int64_param = 1
    answer = call(channel, "ModelInfer", asked(outputs=[wanted]))
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [2, 1])
    best = logits(call(channel, "ModelInfer", asked())).argmax(1)
    assert answer.raw_output_contents[0].endswith(f":{best[1]}".encode())


def test_a_message_that_is_none_is_the_callers_mistake(channel: grpc.Channel) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "is no inference.ModelInferRequest"):
        call(channel, "ModelInfer", b"\xff\xff\xff")


@pytest.mark.parametrize("packed", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_over_the_limit_is_refused_packed_or_not(channel: grpc.Channel, packed: grpc.Compression) -> None:
    with refused(StatusCode.RESOURCE_EXHAUSTED, "larger than max"):
        call(channel, "ModelInfer", asked(np.zeros((8000, 3, 8, 8), np.float32)), compression=packed)
    assert logits(call(channel, "ModelInfer", asked(), compression=packed)).shape == (2, 4)


def test_a_message_that_never_comes_is_given_up(channel: grpc.Channel) -> None:
    silent = threading.Event()

    def nothing() -> Iterator[bytes]:
        silent.wait(SECONDS)
        yield from ()

    method: Any = channel.stream_unary(PREFIX + "ModelInfer")
    try:
        with refused(StatusCode.INVALID_ARGUMENT, "did not come within 0.5 s"):
            method(nothing(), timeout=SECONDS)
    finally:
        silent.set()


def test_a_call_without_a_message_is_the_callers_mistake(channel: grpc.Channel) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "brings no message"):
        channel.stream_unary(PREFIX + "ModelInfer")(iter(()), timeout=SECONDS)


# Time


@pytest.fixture
def stopped_runner(serving: Api, channel: grpc.Channel) -> Iterator[None]:
    """Hold the runner of `net`, so that no request is answered."""
    call(channel, "ModelInfer", asked())
    runners = [child for child in psutil.Process().children(recursive=True) if holds(child, ("workers.runners",))]
    for runner in runners:
        os.kill(runner.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for runner in runners:
            os.kill(runner.pid, signal.SIGCONT)
        wait_until(lambda: in_flight(serving) == 0, what="nothing is in flight")


@pytest.mark.usefixtures("stopped_runner")
def test_a_request_is_given_up_when_its_own_time_is_over(channel: grpc.Channel) -> None:
    soon = pb.InferParameter(int64_param=200_000)
    with refused(StatusCode.DEADLINE_EXCEEDED) as trailers:
        call(channel, "ModelInfer", asked(parameters={"timeout": soon}))
    assert trailers["octet-code"] == "deadline_exceeded"


@pytest.mark.usefixtures("stopped_runner")
def test_a_request_is_given_up_when_its_client_gives_up(serving: Api, channel: grpc.Channel) -> None:
    with refused(StatusCode.DEADLINE_EXCEEDED):
        call(channel, "ModelInfer", asked(), timeout=0.2)
    wait_until(lambda: in_flight(serving) == 0, what="the request is gone")


@pytest.mark.usefixtures("stopped_runner")
def test_a_request_is_given_up_when_its_client_cancels(serving: Api, channel: grpc.Channel) -> None:
    method: Any = channel.unary_unary(PREFIX + "ModelInfer")
    pending = method.future(asked().SerializeToString(), timeout=SECONDS)
    wait_until(lambda: in_flight(serving) == 1, what="the request is there")
    pending.cancel()
    wait_until(lambda: in_flight(serving) == 0, what="the request is gone")


@pytest.mark.usefixtures("stopped_runner")
def test_a_call_too_many_is_refused(serving: Api) -> None:
    with running_rpc(serving, most_calls=1, stop_seconds=0.1) as address, grpc.insecure_channel(address) as own:
        inference: Any = own.unary_unary(PREFIX + "ModelInfer")
        waiting = inference.future(asked().SerializeToString(), timeout=SECONDS)
        wait_until(lambda: in_flight(serving) == 1, what="the first call is there")
        with refused(StatusCode.RESOURCE_EXHAUSTED, "limit"):
            call(own, "ModelInfer", asked())
        waiting.cancel()
