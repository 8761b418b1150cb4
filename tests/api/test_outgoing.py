"""Answers on their way out, and requests that are too late: what a client that lets others wait may cost."""

import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.api.harness import Api, publish_model, running_api
from tests.api.wire import LENGTH, Wire, check_well, content, head, request, row, twice, wire
from tests.running import wait_until

LARGE = row(4_000_000)
"""More bytes than the kernel takes from a process for a client that does not read."""
SMALL_BUFFER = 64 * 1024
SECONDS = 3


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application with `twice`, and with little patience."""
    folder = tmp_path_factory.mktemp("outgoing")
    nowhere = f"unix://{folder}/nobody-listens.sock"
    with running_api(folder / "data", redis_url=nowhere, body_timeout_seconds=SECONDS) as running:
        publish_model(running, folder, name="twice", graph=twice())
        yield running


def held_bytes(api: Api) -> int:
    return api.services.intake._held_bytes


def ask(connection: Wire) -> bytes:
    """Ask for a large answer; return its first byte."""
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    connection.send(request(LARGE, "Connection: close"))
    return connection.socket.recv(1)


def test_an_answer_counts_as_held_until_its_client_has_taken_it(target: Api) -> None:
    with wire(target) as connection:
        first = ask(connection)
        assert held_bytes(target) >= LARGE.nbytes
        answer = first + connection.everything()
    assert np.array_equal(np.frombuffer(answer[-LARGE.nbytes :], np.float32), 2 * LARGE)
    check_well(target)


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(target: Api) -> None:
    with wire(target) as connection:
        first = ask(connection)
        wait_until(lambda: held_bytes(target) == 0, what="the answer is held no more")
        assert len(first + connection.everything()) < LARGE.nbytes
    check_well(target)


def send_often(connection: Wire, sent: bytes) -> None:
    for _ in range(1000):
        connection.send(sent)


def test_many_small_answers_that_nobody_reads_end_their_connection(target: Api) -> None:
    x = row(50_000)
    with wire(target) as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        with pytest.raises(ConnectionError):
            send_often(connection, request(x))
    check_well(target)


def test_a_body_that_comes_too_late_for_its_deadline_is_not_run(target: Api) -> None:
    body, length = content(row())
    with wire(target) as connection:
        connection.send(head(len(body), f"{LENGTH}: {length}", "X-Request-Timeout-Ms: 300"), body[:-1])
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() > begun + 0.4, what="the deadline is over")
        connection.send(body[-1:])
        answer = connection.answer()
    assert (answer.status, "300 ms" in answer.error) == (504, True)


@pytest.mark.parametrize("path", ["/v1/models/twice/predict", "/predict?model=twice"])
def test_long_json_that_cannot_be_answered_in_time_is_refused_before_it_comes(target: Api, path: str) -> None:
    with wire(target) as connection:
        connection.send(
            head(2**20, "Content-Type: application/json", "X-Request-Timeout-Ms: 0.000001", path=path), b"["
        )
        assert connection.answer().status == 504
        connection.send(b"[")
    check_well(target)


def test_long_json_for_a_model_that_is_not_there_is_refused_before_it_comes(target: Api) -> None:
    with wire(target) as connection:
        connection.send(head(2**20, "Content-Type: application/json", path="/v1/models/nobody/predict"), b"[")
        assert connection.answer().status == 404
