"""Clients that send slowly, in odd pieces, one behind another, or not at all: nobody else feels it."""

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.api import http_protocol
from app.api.dependencies import Services
from app.api.http_protocol import MOST_HEADER_BYTES
from app.domain.errors import QueueFull
from tests.api.harness import Api, publish_model, running_api
from tests.api.wire import (
    LENGTH,
    LONG,
    Row,
    Wire,
    check_nothing_held,
    check_well,
    content,
    head,
    lent,
    refused,
    request,
    row,
    tensor,
    twice,
    wire,
)
from tests.running import wait_until

SMALL, LARGE = row(8), row(LONG, seed=1)
MOST = 2**22
"""Bytes of a body; one variant may hold as many at once."""

SECONDS = 10.0
"""How long the wrong-answer hunt takes."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application with `twice`, which doubles any row, and little patience."""
    folder = tmp_path_factory.mktemp("target")
    nowhere = f"unix://{folder}/nobody-listens.sock"
    limits = {"max_predict_bytes": MOST, "max_predict_bytes_in_flight": 2 * MOST, "body_timeout_seconds": 1.5}
    with running_api(folder / "data", redis_url=nowhere, **limits) as running:
        publish_model(running, folder, name="twice", graph=twice())
        check_well(running)
        yield running


def start(x: Row, *lines: str) -> tuple[bytes, bytes]:
    """Return a good request's head and body."""
    body, length = content(x)
    return head(len(body), f"{LENGTH}: {length}", *lines), body


def check_doubled(connection: Wire, x: Row) -> None:
    assert np.array_equal(connection.answer().numbers(), 2 * x)


@pytest.mark.parametrize("x", [SMALL, LARGE], ids=["short", "long"])
@pytest.mark.parametrize("share", [0.0, 0.4], ids=["never sent", "stopped in the middle"])
def test_a_body_that_does_not_come_is_given_up_and_the_neighbours_are_answered(
    target: Api, x: Row, share: float
) -> None:
    first, body = start(x)
    with wire(target) as connection:
        connection.send(first, body[: int(share * len(body))])
        with wire(target) as neighbour:
            neighbour.send(request(LARGE))
            check_doubled(neighbour, LARGE)
        answer = connection.answer()
        assert (answer.status, "within 1.5 s" in answer.error) == (422, True)
    check_well(target)


def test_a_chunked_body_without_end_is_given_up(target: Api) -> None:
    first = head("", f"{LENGTH}: 10", "Transfer-Encoding: chunked")
    with wire(target) as connection:
        connection.send(first, b"5\r\nhello\r\n" * 3)
        assert connection.answer().status == 422
    with wire(target) as connection:
        connection.send(first, b"10000\r\n", b"x" * 2**16, b"\r\n", (b"10000\r\n" + b"x" * 2**16 + b"\r\n") * 70)
        assert connection.answer().status == 413
    check_well(target)


def test_a_chunk_whose_extension_never_ends_is_refused(target: Api) -> None:
    with wire(target) as connection:
        connection.send(head("", f"{LENGTH}: 10", "Transfer-Encoding: chunked"), b"5;", b"a" * (3 * MOST_HEADER_BYTES))
        answer = connection.answer()
        assert (answer.status, "headers" in answer.error) == (431, True)
        assert connection.ended()
    check_well(target)


@pytest.mark.parametrize("size", [8, 300, LONG])
def test_a_request_may_come_in_any_pieces(target: Api, size: int) -> None:
    x, drawn = row(size, seed=size), random.Random(size)
    whole = request(x) * 2
    with wire(target) as connection:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        at = 0
        while at < len(whole):
            step = drawn.choice((1, 1, 2, 100, 5000, 70_000)) if size > 8 else 1
            connection.send(whole[at : at + step])
            at += step
        check_doubled(connection, x)
        check_doubled(connection, x)
    check_well(target)


def test_a_client_that_leaves_in_the_middle_harms_nobody_who_gets_its_memory(target: Api) -> None:
    first, body = start(np.full(LONG, np.nan, np.float32))
    for share in (0.3, 0.9):
        leaver = Wire(target.port)
        leaver.send(first, body[: int(share * len(body))])
        wait_until(lambda: lent(target) > 0, what="the body has a segment")
        before = target.do(_segments)
        reset(leaver)
        check_nothing_held(target)
        with wire(target) as connection:
            connection.send(request(LARGE))
            check_doubled(connection, LARGE)
        assert target.do(_segments) == before  # it was that same memory


async def _segments(services: Services) -> dict[tuple[str, int, str], int]:
    return services.pool.segment_bytes()


def reset(connection: Wire) -> None:
    """Leave without a word of good-bye: the kernel sends a reset."""
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_body_that_was_given_up_writes_no_more_into_its_memory(target: Api) -> None:
    first, body = start(np.full(LONG, np.nan, np.float32))
    with wire(target) as late:
        late.send(first, body[:100_000])
        assert late.answer().status == 422  # it was too slow, and its memory goes to the next one
        with wire(target) as connection:
            announced, good = start(LARGE)
            connection.send(announced, good[:-4])
            wait_until(lambda: lent(target) > 0, what="the next body has a segment")
            late.send(body[100_000:200_000])
            connection.send(good[-4:])
            check_doubled(connection, LARGE)
    check_well(target)


def test_requests_behind_one_another_are_answered_in_their_order(target: Api) -> None:
    given = [row(size, seed=number) for number, size in enumerate((8, LONG, 9, 20_000, LONG, LONG, 5, 6, 7))]
    with wire(target) as connection:
        sending = threading.Thread(target=connection.send, args=[request(x) for x in given])
        sending.start()
        for x in given:
            check_doubled(connection, x)
        sending.join()
    check_well(target)


def test_what_is_wrong_behind_good_requests_overtakes_none_of_them(target: Api) -> None:
    for wrong, status in ((b"\x00\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nA: " + b"b" * 2**20, 431)):
        with wire(target) as connection:
            connection.send(request(SMALL), request(LARGE), request(SMALL), wrong)
            for x in (SMALL, LARGE, SMALL):
                check_doubled(connection, x)
            answer = connection.answer()
            assert (answer.status, bool(answer.error)) == (status, True)
            assert connection.ended()
    check_well(target)


def test_a_client_that_leaves_with_requests_behind_one_another_is_no_bug(target: Api) -> None:
    for _ in range(20):
        leaver = Wire(target.port)
        leaver.send(request(SMALL), request(LARGE), request(SMALL)[:50])
        reset(leaver)
    check_well(target)
    assert 'status="500"' not in target.client.get("/metrics").text


@pytest.mark.parametrize("x", [SMALL, LARGE], ids=["short", "long"])
def test_who_asks_first_is_told_to_go_on(target: Api, x: Row) -> None:
    first, body = start(x, "Expect: 100-continue")
    with wire(target) as connection:
        for _ in range(2):
            connection.send(first)
            assert connection.answer().status == 100
            connection.send(body)
            check_doubled(connection, x)
    check_well(target)


def test_who_asks_first_and_is_refused_need_not_send(target: Api) -> None:
    first, _ = start(LARGE, "Expect: 100-continue")
    with wire(target) as connection:
        connection.send(first.replace(b"twice", b"nobody"))
        assert (connection.answer().status, connection.ended()) == (404, True)


LIES = [
    "Content-Length: 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: chunked, identity",
    " folded: into the line before",
    "Spaced : out",
    "No colon",
    "Nul: \x00",
]


@pytest.mark.parametrize("lie", LIES)
def test_a_head_of_two_minds_is_refused(target: Api, lie: str) -> None:
    for x in (SMALL, LARGE):
        first, body = start(x, lie)
        with wire(target) as connection:
            connection.send(first, body)
            answer = connection.answer()
            assert (answer.status, bool(answer.error), connection.ended()) == (400, True, True)
    check_well(target)


@pytest.mark.parametrize("length", ["-1", "+5", "5, 5", "0x10", "1e3", "9" * 30, "9" * 5000])
def test_a_length_that_is_none_is_refused(target: Api, length: str) -> None:
    with wire(target) as connection:
        connection.send(head(length, f"{LENGTH}: 5"), b"hello")
        answer = connection.answer()
        assert (answer.status, bool(answer.error)) == (400, True)
    check_well(target)


@pytest.mark.parametrize("x", [SMALL, LARGE], ids=["short", "long"])
@pytest.mark.parametrize("asked", ["h2c", "websocket", "TLS/1.0"])
def test_a_wish_for_an_upgrade_is_ignored(target: Api, x: Row, asked: str) -> None:
    body, length = content(x)
    lines = (f"{LENGTH}: {length}", "Connection: Upgrade, HTTP2-Settings", f"Upgrade: {asked}", "HTTP2-Settings: AAMA")
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with wire(target) as connection:
        sent = (head(len(body), *lines), body, head("", "Transfer-Encoding: chunked", *lines), chunked, request(SMALL))
        sending = threading.Thread(target=connection.send, args=sent)
        sending.start()
        for expected in (x, x, SMALL):
            check_doubled(connection, expected)
        sending.join()
    check_well(target)


def test_an_old_client_is_answered_and_the_connection_ends(target: Api) -> None:
    with wire(target) as connection:
        connection.send(request(LARGE).replace(b"HTTP/1.1", b"HTTP/1.0"))
        check_doubled(connection, LARGE)
        assert connection.ended()


def test_what_comes_behind_the_last_request_is_ignored(target: Api) -> None:
    with wire(target) as connection:
        connection.send(request(LARGE, "Connection: close"), b"\x00 more", request(SMALL))
        check_doubled(connection, LARGE)
        assert connection.ended()


def test_bytes_that_are_announced_take_no_room_before_they_come(target: Api) -> None:
    announced = [Wire(target.port) for _ in range(20)]
    for connection in announced:
        connection.send(head(MOST, f"{LENGTH}: 10"))
    check_neighbour(target)
    for connection in announced:
        connection.close()
    check_well(target)


def check_neighbour(api: Api) -> None:
    with wire(api) as neighbour:
        neighbour.send(request(LARGE))
        check_doubled(neighbour, LARGE)


def test_bytes_that_come_beyond_the_room_for_all_are_refused(target: Api) -> None:
    first, second, third = (Wire(target.port) for _ in range(3))
    body = b"x" * (MOST - 1)
    for connection in (first, second):
        connection.send(head(MOST, f"{LENGTH}: 10"), body)
    wait_until(lambda: target.services.intake._held_bytes >= len(body), what="a body is held")
    third.send(head(MOST, f"{LENGTH}: 10"), body)
    answer = third.answer()
    assert (answer.status, refused(QueueFull, answer)) == (503, True)
    for connection in (first, second, third):
        connection.close()
    check_well(target)


def test_headers_that_come_too_slowly_are_given_up(target: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MOST_HEADER_SECONDS", 0.3)
    with wire(target) as silent, wire(target) as slow, wire(target) as second:
        second.send(request(SMALL))
        check_doubled(second, SMALL)
        for connection in (slow, second):
            connection.send(b"GET /livez HTTP/1.1\r\n")
        for connection in (slow, second):
            answer = connection.answer()
            assert (answer.status, "headers" in answer.error, connection.ended()) == (408, True, True)
        assert silent.ended()


def test_a_connection_that_is_slow_with_its_second_request_is_not_held_against_it(
    target: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MOST_HEADER_SECONDS", 0.2)
    with wire(target) as connection:
        first, body = start(LARGE)
        connection.send(first, body[:-1])
        with wire(target) as silent:
            assert silent.ended()  # so that time is over
        connection.send(body[-1:])
        check_doubled(connection, LARGE)


def hunt(api: Api, seed: int, until: float) -> int:
    """Send good, bad and broken requests until a time; return how many were answered, all of them rightly."""
    drawn, answered = random.Random(seed), 0
    while time.monotonic() < until:
        connection = Wire(api.port)
        try:
            answered += some(connection, drawn)
        finally:
            (reset if drawn.random() < 0.5 else Wire.close)(connection)
    return answered


def some(connection: Wire, drawn: random.Random) -> int:
    """Send some good requests on one connection, some of them behind one another, and then perhaps a bad one."""
    done = 0
    for _ in range(drawn.randrange(1, 6)):
        sizes = [drawn.choice((8, 5000, LONG)) for _ in range(drawn.choice((1, 1, 3)))]
        given = [row(size, seed=drawn.randrange(2**30)) for size in sizes]
        connection.send(*(request(x) for x in given))
        for x in given:
            check_doubled(connection, x)
        done += len(given)
    mutilate(connection, drawn)
    return done


def mutilate(connection: Wire, drawn: random.Random) -> None:
    x = row(LONG, seed=1) * np.float32(np.nan)
    first, body = start(x)
    match drawn.randrange(4):
        case 0:
            connection.send(first, body[: drawn.randrange(len(body))])
        case 1:
            connection.send(first, body)
        case 2:
            body, length = content(x, tensor(x, shape=[1, 3]))
            connection.send(head(len(body), f"{LENGTH}: {length}"), body)
            assert connection.answer().status == 422
        case _:
            connection.send(b"\x00\r\n\r\n")


@pytest.mark.slow
def test_among_leavers_and_breakers_every_answer_is_its_own_rows(target: Api) -> None:
    until = time.monotonic() + SECONDS
    with ThreadPoolExecutor(8) as clients:
        hunts = [clients.submit(hunt, target, seed, until) for seed in range(8)]
        answered = [each.result() for each in hunts]
    assert min(answered) > 0
    check_well(target)
    assert 'status="500"' not in target.client.get("/metrics").text
