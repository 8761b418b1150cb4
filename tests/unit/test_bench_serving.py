"""The load generator's arithmetic and its reading of HTTP; and one load against a real socket."""

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.serving import http
from benchmarks.serving.arithmetic import (
    goodput,
    longest_gap,
    median,
    percentile,
    poisson_schedule,
    seconds_to_normal,
)
from benchmarks.serving.load import Call, Done, Outcome, opened

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([7.0], 0.01) == 7.0


def test_nothing_has_no_percentile_and_no_median() -> None:
    assert math.isnan(percentile([], 0.5))
    assert math.isnan(median([]))


def test_the_median_of_an_even_number_lies_between_the_two_in_the_middle() -> None:
    assert median([1.0, 9.0, 3.0, 4.0]) == 3.5
    assert median([9.0, 1.0, 3.0]) == 3.0


def test_goodput_counts_only_what_came_within_the_limit() -> None:
    assert goodput([0.05, 0.1, 0.11, 3.0], limit=0.1, seconds=2) == 1.0


def test_a_poisson_schedule_has_the_rate_and_the_spread_of_a_poisson_process() -> None:
    moments = poisson_schedule(rate=100, seconds=200, seed=5)
    gaps = [after - before for before, after in zip([0.0, *moments], moments, strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    # 20,000 events: the count's standard deviation is 141, that of an exponential's mean and deviation under 1 %
    assert abs(len(moments) - 20_000) < 5 * 141
    assert abs(deviation / mean - 1) < 0.05


def test_a_poisson_schedule_is_sorted_within_its_time_and_the_same_for_a_seed() -> None:
    moments = poisson_schedule(rate=50, seconds=3, seed=1)
    assert moments == sorted(moments)
    assert 0 < moments[0] <= moments[-1] < 3
    assert moments == poisson_schedule(rate=50, seconds=3, seed=1)
    assert moments != poisson_schedule(rate=50, seconds=3, seed=2)


def test_the_longest_gap_counts_from_the_beginning_and_to_the_end() -> None:
    assert longest_gap([2.0, 1.0, 5.0], begin=0.5, end=6.0) == 3.0
    assert longest_gap([], begin=1.0, end=3.5) == 2.5
    assert longest_gap([1.0], begin=0.0, end=9.0) == 8.0


def test_time_to_normal_ends_with_the_last_bad_request() -> None:
    moments = [(1.0, False), (10.5, False), (11.5, True), (12.0, False), (13.0, True)]
    assert seconds_to_normal(moments, since=10.0) == 2.0
    assert seconds_to_normal(moments, since=12.5) == 0.0


def test_a_latency_counts_from_the_moment_a_request_was_due() -> None:
    assert Done(10.0, 12.5, Outcome.RIGHT).latency == 2.5


@pytest.mark.parametrize("cut", [10, len(ANSWER), len(ANSWER) + 4])
def test_an_answer_is_read_once_it_is_whole(cut: int) -> None:
    data = ANSWER + b"right"
    assert http.answer(data[:cut]) is None
    found = http.answer(data)
    assert found is not None
    assert (found.status, found.body, found.closes) == (200, b"right", False)


def test_a_chunked_answer_is_put_together() -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nrig\r\n2\r\nht\r\n0\r\n\r\n"
    assert all(http.answer(data[:cut]) is None for cut in range(len(data)))
    found = http.answer(data)
    assert found is not None
    assert found.body == b"right"


def test_bytes_that_are_no_http_are_refused() -> None:
    with pytest.raises(http.AnswerMalformed):
        http.answer(b"SSH-2.0-server\r\n\r\n")


@contextmanager
def served(*answers: bytes) -> Iterator[int]:
    """Answer the requests of one connection after the other with these bytes, in turn, then hang up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                with listening.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield int(listening.getsockname()[1])
        thread.join(timeout=10)


def outcomes(*answers: bytes) -> list[Outcome]:
    head, body = http.request("/", headers={}, body=b"question")
    done: list[Done] = []
    with served(*answers) as port:
        call = Call(head=head, body=body, check=lambda answer: answer.body == b"right")
        load = opened(port, [call], connections=1, done=done)
        try:
            load.closed_loop(requests=len(answers))
        finally:
            load.close()
    return [one.outcome for one in done]


def test_every_answer_is_checked_and_a_lost_connection_is_told_apart_from_a_wrong_answer() -> None:
    closing = b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: 5\r\n\r\n%b"
    found = outcomes(
        closing % (b"200 OK", b"right"),
        closing % (b"200 OK", b"wrong"),
        closing % (b"503 Service Unavailable", b"later"),
        closing % (b"500 Internal Server Error", b"sorry"),
        b"",
    )
    assert found == [Outcome.RIGHT, Outcome.WRONG, Outcome.REFUSED, Outcome.FAILED, Outcome.BROKEN]


def test_an_open_loop_gives_up_what_it_could_not_send_in_time() -> None:
    done: list[Done] = []
    head, body = http.request("/", headers={}, body=b"")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        call = Call(head=head, body=body, check=lambda answer: answer.status == http.OK)
        load = opened(silent.getsockname()[1], [call], connections=1, done=done, timeout_seconds=0.3)
        try:
            load.open_loop([0.0, 0.01, 0.02], give_up_seconds=0.05)
        finally:
            load.close()
    assert sorted(one.outcome for one in done) == [Outcome.BROKEN, Outcome.UNSENT, Outcome.UNSENT]
