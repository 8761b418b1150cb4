"""A report keeps a bounded number of a training's points, from all of it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.training import TrainingPoint
from workers.jobs.training.curves import thinned


def points(count: int, *, every: int = 1) -> tuple[TrainingPoint, ...]:
    """Return step 0 and what follows; the held-out rows are looked at on even places."""
    return tuple(
        TrainingPoint(
            step=place * every,
            loss=None if place == 0 else float(place),
            learning_rate=0.1,
            score=1.0 + place if place % 2 == 0 else None,
        )
        for place in range(count)
    )


def test_few_points_stay_as_they_are() -> None:
    assert thinned(points(500), best_step=3, most=500) == points(500)


@given(count=st.integers(11, 300), best=st.integers(0, 299), most=st.integers(3, 10))
def test_the_first_the_best_and_the_last_point_stay(count: int, best: int, most: int) -> None:
    best = min(best, count - 1)
    found = thinned(points(count), best_step=best, most=most)
    assert len(found) <= most
    steps = [point.step for point in found]
    assert steps == sorted(set(steps))
    assert {0, best, count - 1} <= set(steps)


def test_points_come_from_all_of_it_evenly() -> None:
    steps = [point.step for point in thinned(points(1001), best_step=0, most=12)]
    assert steps == list(range(0, 1001, 100))


@given(st.integers(12, 300))
def test_the_mean_loss_stays_that_of_all_steps(count: int) -> None:
    given_points, found = points(count, every=3), thinned(points(count, every=3), best_step=0, most=7)

    def total(each: tuple[TrainingPoint, ...]) -> float:
        return sum((one.loss or 0) * (one.step - before.step) for before, one in pairwise(each))

    assert total(found) == pytest.approx(total(given_points))


def test_a_joined_point_has_the_last_look_of_its_steps() -> None:
    found = thinned(points(10), best_step=0, most=4)
    assert [(point.step, point.score) for point in found] == [(0, 1.0), (4, 5.0), (9, 9.0)]
