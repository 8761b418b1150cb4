"""What a runner makes of what it measured: one setting for a request alone, one for many, and what the user pinned."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.serving import CurvePoint, Knobs
from workers.runners import tuning
from workers.runners.tuning import GAIN, Run, Space, choose, space, tune


def point(streams: int, batch: int, *, rate: float, p50: float = 1.0, busy: int | None = None) -> CurvePoint:
    return CurvePoint(
        streams=streams, threads=4, busy=busy or streams, batch=batch, p50_seconds=p50, rows_per_second=rate
    )


ALONE = point(1, 1, rate=100)


def test_the_most_rows_a_second_are_taken_for_many_requests() -> None:
    best = point(2, 4, rate=200)
    found = choose([ALONE, point(1, 4, rate=150), point(2, 1, rate=120), best])
    assert (found.latency, found.throughput) == (ALONE, best)


def test_of_settings_as_fast_the_one_that_answers_soonest_is_taken() -> None:
    soonest = point(2, 1, rate=196, p50=2.0)
    assert choose([ALONE, point(2, 8, rate=200, p50=9.0), soonest]).throughput == soonest


def test_what_brings_next_to_nothing_is_not_worth_its_memory() -> None:
    assert choose([ALONE, point(2, 1, rate=100 * GAIN - 1, p50=0.1)]).throughput == ALONE


def test_one_of_several_streams_answers_a_request_alone_where_that_is_sooner() -> None:
    one_of_two, both = point(2, 1, rate=200, p50=0.5, busy=1), point(2, 1, rate=205, p50=0.9)
    found = choose([ALONE, one_of_two, both])
    assert (found.latency, found.throughput) == (one_of_two, both)


def test_a_request_alone_takes_the_session_that_is_there_if_that_is_about_as_fast() -> None:
    one_of_two, both = point(2, 1, rate=98, p50=1.02, busy=1), point(2, 1, rate=190, p50=1.1)
    assert choose([ALONE, one_of_two, both]).latency == one_of_two


def test_pinned_streams_are_kept_though_they_are_slower() -> None:
    slower = point(4, 1, rate=10)
    assert choose([ALONE, point(2, 1, rate=900), slower], streams=4).throughput == slower


points = st.builds(
    point,
    st.integers(1, 4),
    st.sampled_from(tuning.BATCHES),
    rate=st.floats(0.1, 1e6),
    p50=st.floats(1e-6, 10),
    busy=st.none() | st.just(1),
)


def setting(each: CurvePoint) -> tuple[int, int, int]:
    return each.streams, each.busy, each.batch


@given(st.lists(points.filter(lambda each: setting(each) != setting(ALONE)), unique_by=setting))
def test_whatever_was_measured_the_choice_is_from_it_and_next_to_none_is_better(others: list[CurvePoint]) -> None:
    found = choose([ALONE, *others])
    alone = [each for each in found.curve if each.busy == each.batch == 1]
    full = [each for each in found.curve if each.busy == each.streams]
    assert found.latency in alone
    assert found.throughput in full
    assert found.latency.p50_seconds <= GAIN * min(each.p50_seconds for each in alone)
    assert found.throughput.rows_per_second * GAIN**2 >= max(each.rows_per_second for each in full)


@pytest.mark.parametrize(
    ("knobs", "streams", "most_rows"),
    [
        (Knobs(), (1, 2, 4, 6), 32),
        (Knobs(mode="latency", streams=4), (1,), 32),
        (Knobs(streams=3), (1, 3), 32),
        (Knobs(streams=1), (1,), 32),
        (Knobs(max_batch_size=8), (1, 2, 4, 6), 8),
        (Knobs(max_batch_size=64), (1, 2, 4, 6), 32),
    ],
)
def test_only_what_the_user_left_open_is_tried(knobs: Knobs, streams: tuple[int, ...], most_rows: int) -> None:
    found = space(knobs, threads=6, most_rows=32)
    assert (found.streams, found.most_rows) == (streams, most_rows)


class Engine:
    """Notes what it is asked to run, and takes no time of its own.

    Attributes:
        lanes: that ran, by streams and rows.
    """

    def __init__(self) -> None:
        self.lanes: dict[tuple[int, int], set[int]] = {}

    def prepare(self, streams: int, rows: int) -> Run:
        return self.lanes.setdefault((streams, rows), set()).add


def test_every_stream_is_run_and_no_batch_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "TURN_SECONDS", 0.0)
    engine = Engine()
    found = tune(Space(streams=(1, 3), pinned=None, threads=3, most_rows=4), engine.prepare)
    assert {(each.streams, each.batch) for each in found.curve} == engine.lanes.keys()
    assert {each.busy for each in found.curve if each.streams == 3 and each.batch == 1} == {1, 3}
    assert engine.lanes.keys() <= set(itertools.product((1, 3), (1, 2, 4)))
    assert all(lanes == set(range(streams)) for (streams, _), lanes in engine.lanes.items())


def test_pinned_streams_are_measured_and_taken_though_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "MOST_SECONDS", -1.0)
    engine = Engine()
    found = tune(Space(streams=(1, 4), pinned=4, threads=4, most_rows=32), engine.prepare)
    assert set(engine.lanes) == {(1, 1), (4, 1)}
    assert found.throughput.streams == 4
