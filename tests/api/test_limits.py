"""What one client may take of a gateway process: headers, time and memory of bodies, followers."""

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.requests import Request
from starlette.types import Message

from app.api.arrays import to_npy
from app.api.bodies import read_prediction
from app.api.http_protocol import MOST_HEADER_BYTES
from app.api.intake import Intake
from app.domain.errors import QueueFull
from app.domain.tensors import DType, Signature, TensorSpec
from tests.api.harness import Api, publish_model, running_api
from tests.graphs import rows
from tests.running import Redis, wait_until

PREDICT = "/v1/models/net/predict"
NPY = {"Content-Type": "application/x-npy"}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, redis: Redis) -> Iterator[Api]:
    """The application with `net` and narrow limits."""
    folder = tmp_path_factory.mktemp("limited")
    limits = {"max_json_bytes": 10_000, "max_predict_bytes_in_flight": 100_000}
    with running_api(folder / "data", redis_url=redis.url, max_followers=2, **limits) as running:
        publish_model(running, folder, name="net")
        yield running


def connect(api: Api, *lines: str, body: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", api.port), timeout=30)
    connection.sendall("\r\n".join([*lines, "Host: octet", "", ""]).encode() + body)
    return connection


def answer_of(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65_536):
            received += piece
    except ConnectionError:  # it is closed while we have more to send
        return received
    return received


def test_json_has_a_limit_of_its_own_and_the_error_points_to_arrays(limited: Api) -> None:
    large = [[0.5] * 3000]
    answer = limited.client.post(PREDICT, json={"inputs": large})
    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")
    assert ".npy" in answer.json()["detail"]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3000], "data": large}
    assert limited.client.post("/v2/models/net/infer", json={"inputs": [tensor]}).status_code == 413


def test_a_shape_without_end_is_refused_by_the_protocol(limited: Api) -> None:
    tensor = {"name": "input", "datatype": "FP32", "shape": [2**62] * 400, "data": [0.5]}
    answer = limited.client.post("/v2/models/net/infer", json={"inputs": [tensor]})
    assert (answer.status_code, answer.json()["code"]) == (422, "signature_mismatch")


def test_an_unreadable_array_is_refused(limited: Api) -> None:
    answer = limited.client.post(PREDICT, content=b"\x93NUMPY\x01\x00\x05\x00(((((", headers=NPY)
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


def test_a_body_that_does_not_come_in_time_is_refused(redis: Redis, tmp_path: Path) -> None:
    lines = (f"POST {PREDICT} HTTP/1.1", "Content-Type: application/x-npy", "Content-Length: 1000")
    with running_api(tmp_path / "data", redis_url=redis.url, body_timeout_seconds=0.5) as hurried:
        publish_model(hurried, tmp_path, name="net")
        with connect(hurried, *lines, body=b"x" * 999) as connection:
            answer = answer_of(connection)
    assert answer.startswith(b"HTTP/1.1 422")
    assert b"within 0.5 s" in answer


def test_predictions_that_would_hold_too_many_bytes_together_are_refused_for_a_while(limited: Api) -> None:
    array = to_npy(np.zeros((150, 3, 8, 8), np.float32))
    assert len(array) > 100_000
    answer = limited.client.post(PREDICT, content=array, headers=NPY)
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
    assert "retry-after" in answer.headers
    assert limited.client.post(PREDICT, content=to_npy(rows(2)), headers=NPY).status_code == 200


def test_bytes_are_held_until_the_prediction_ends(limited: Api) -> None:
    intake = limited.services.intake
    with intake.held() as first, intake.held() as second:
        first.add(60_000)
        with pytest.raises(QueueFull, match="100000 bytes"):
            second.add(60_000)
    with intake.held() as third:
        third.add(100_000)


def test_other_requests_go_on_while_a_long_array_is_put_into_the_order_of_c(limited: Api) -> None:
    spec = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 1000))
    content = to_npy(np.asfortranarray(np.ones((4000, 1000), ">f4")))

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    async def turns() -> int:
        request = Request({"type": "http", "headers": [(b"content-type", b"application/x-npy")]}, receive)
        limits = replace(limited.services.limits, max_predict_bytes=len(content))
        with Intake(most_bytes=len(content)).held() as held:
            body = await read_prediction(request, limits=limits, held=held)
        parsing, counted = asyncio.ensure_future(body.parse(Signature(inputs=(spec,), outputs=(spec,)))), 0
        while not parsing.done():
            await asyncio.sleep(0)
            counted += 1
        return counted

    assert asyncio.run(turns()) > 2


ONE, OTHER = ("net", 1, "int8"), ("net", 1, "float32")


def test_one_variant_holds_at_most_half_unless_its_one_request_takes_more() -> None:
    intake = Intake(most_bytes=100)
    with intake.held() as first, intake.held() as second, intake.held() as neighbour:
        for each, variant in ((first, ONE), (second, ONE), (neighbour, OTHER)):
            each.assign(variant)
        first.add(40)
        with pytest.raises(QueueFull, match="net:1@int8 under way hold 50 bytes"):
            second.add(20)
        second.add(10)
        neighbour.add(50)
    with intake.held() as alone:
        alone.assign(ONE)
        alone.add(100)
    assert (intake._held_bytes, intake._of_variant) == (0, {})


def test_bytes_that_came_before_it_is_known_who_answers_become_the_variants() -> None:
    intake = Intake(most_bytes=100)
    with intake.held() as first, intake.held() as second:
        first.add(40)
        first.assign(OTHER)
        first.assign(ONE)
        second.add(20)
        with pytest.raises(QueueFull):
            second.assign(ONE)
        second.assign(OTHER)
        assert intake._of_variant == {ONE: 40, OTHER: 20}
    assert (intake._held_bytes, intake._of_variant) == (0, {})


def test_an_answer_is_held_instead_of_its_request_until_it_is_released() -> None:
    intake = Intake(most_bytes=100)
    with intake.held() as held:
        held.assign(ONE)
        held.add(10)
        held.keep(60)
    assert (intake._held_bytes, intake._of_variant) == (60, {ONE: 60})
    held.release()
    assert (intake._held_bytes, intake._of_variant) == (0, {})


@pytest.mark.parametrize("lines", [1, 200], ids=["one long line", "many lines"])
def test_headers_over_the_limit_are_refused(limited: Api, lines: int) -> None:
    header = f"A: {'b' * (2 * MOST_HEADER_BYTES // lines)}"
    with connect(limited, "GET /livez HTTP/1.1", *[header] * lines) as connection:
        assert answer_of(connection).startswith(b"HTTP/1.1 431")


def send_without_end(connection: socket.socket, piece: bytes) -> None:
    for _ in range(100_000):
        connection.sendall(piece)


def test_headers_that_never_end_are_refused(limited: Api) -> None:
    with connect(limited, "GET /livez HTTP/1.1") as connection:
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /livez HTTP/1.1\r\nA: ")
        with pytest.raises(ConnectionError):
            send_without_end(connection, b"b" * 65_536)


def test_trailers_that_never_end_are_refused(limited: Api) -> None:
    with connect(limited, f"POST {PREDICT} HTTP/1.1", "Transfer-Encoding: chunked") as connection:
        connection.sendall(b"1\r\nx\r\n0\r\n")
        with pytest.raises(ConnectionError):
            send_without_end(connection, b"A: " + b"b" * 1000 + b"\r\n")


def test_headers_below_the_limit_are_taken(limited: Api) -> None:
    answer = limited.client.get("/livez", headers={"A": "b" * (MOST_HEADER_BYTES - 1000)})
    assert answer.status_code == 200


def follow(api: Api, job: str) -> socket.socket:
    connection, received = connect(api, f"GET /v1/jobs/{job}/events HTTP/1.1"), b""
    while b"event: job" not in received and (piece := connection.recv(65_536)):
        received += piece
    assert received.startswith(b"HTTP/1.1 200")
    assert b"event: job" in received
    return connection


def test_followers_have_a_share_of_their_own(limited: Api) -> None:
    job = limited.upload_model(name="followed")["import_job"]
    with follow(limited, job), follow(limited, job):
        refused = limited.client.get(f"/v1/jobs/{job}/events")
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many")
        assert "retry-after" in refused.headers
        assert limited.client.get("/v1/jobs").status_code == 200
    wait_until(lambda: limited.services.live._followers == 0, what="the followers have left")


def test_streams_end_when_the_process_is_told_to_stop(redis: Redis, tmp_path: Path) -> None:
    with running_api(tmp_path / "data", redis_url=redis.url) as api:
        job = api.upload_model(name="stopped")["import_job"]
        with follow(api, job) as connection:
            api.loop.call_soon_threadsafe(api.services.stopping.set)
            assert answer_of(connection).endswith(b"0\r\n\r\n")  # whole, not broken off
