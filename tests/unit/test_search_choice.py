"""Which trial wins, and which lie on the front."""

from dataclasses import replace

import pytest

from app.domain.evidence import Interval
from app.domain.recipes import Budget, Cast, PtqStatic
from app.domain.search import Trial
from workers.jobs.search.choice import eligible, front, misses, nearest_miss, pick, shortlist

BUDGET = Budget(metric="top1", max_drop=0.005)


def trial(
    key: str, *, speedup: float, drop: float = 0.0, noise: float = 0.1, size: int = 10, spread: float = 0.01
) -> Trial:
    return Trial(
        key=key,
        recipe=PtqStatic(),
        artifact_sha256=key,
        size_bytes=size,
        latency_ms=10 / speedup,
        speedup=speedup,
        memory_bytes=100,
        score=0.9 - drop,
        drop=Interval(value=drop, low=drop - spread, high=drop + spread),
        noise=noise,
    )


def test_the_fastest_wins_where_nothing_near_it_loses_less() -> None:
    trials = [trial("slow", speedup=2, noise=0.01), trial("fast", speedup=3, noise=0.2)]
    assert pick(trials).key == "fast"


def test_of_those_nearly_as_fast_the_one_of_least_noise_wins() -> None:
    trials = [trial("fast", speedup=3, noise=0.2), trial("near", speedup=2.8, noise=0.1)]
    assert pick(trials).key == "near"


def test_a_drop_that_is_surely_smaller_outweighs_noise() -> None:
    sure = trial("sure", speedup=3, drop=0.0, noise=0.2, spread=0.001)
    assert pick([sure, trial("noisy", speedup=3, drop=0.01, noise=0.1, spread=0.001)]).key == "sure"


def test_a_drop_that_may_be_chance_does_not() -> None:
    trials = [trial("lucky", speedup=3, drop=-0.004, noise=0.2), trial("quiet", speedup=3, drop=0.001, noise=0.1)]
    assert pick(trials).key == "quiet"


def test_a_failed_trial_and_one_that_loses_too_much_are_not_eligible() -> None:
    failed = Trial(key="failed", recipe=PtqStatic(), failure="It could not be made.")
    trials = [failed, trial("bad", speedup=9, drop=0.006), trial("good", speedup=2)]
    assert [one.key for one in eligible(trials, BUDGET)] == ["good"]


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (Budget(max_drop=0.001), "loses 0.002"),
        (Budget(max_latency_ms=4), "takes 5 ms"),
        (Budget(max_size_bytes=9), "has 10 bytes"),
    ],
)
def test_each_broken_limit_is_named_with_its_numbers(budget: Budget, says: str) -> None:
    (sentence,) = misses(trial("one", speedup=2, drop=0.002), budget)
    assert says in sentence


def test_the_nearest_miss_is_measured_in_parts_of_the_limit() -> None:
    budget = Budget(max_drop=0.01, max_latency_ms=2)
    trials = [trial("slow", speedup=1), trial("lossy", speedup=5, drop=0.011)]
    assert nearest_miss(trials, budget).key == "lossy"


def test_the_front_holds_what_nothing_beats_everywhere() -> None:
    best, worse = trial("best", speedup=3), trial("worse", speedup=2)
    small = trial("small", speedup=1, size=5)
    assert front([best, worse, small, replace(best, key="twin")]) == ("best", "small", "twin")


def test_the_shortlist_holds_the_best_and_the_fastest() -> None:
    trials = [trial("fast", speedup=3, noise=0.3), trial("best", speedup=2.9, noise=0.1), trial("far", speedup=1)]
    assert [one.key for one in shortlist(trials, most=2)] == ["best", "fast"]


def test_bfloat16_wins_where_nothing_eligible_is_faster() -> None:
    cast = replace(trial("cast", speedup=1.5, noise=0.001), recipe=Cast())
    assert pick([cast, trial("int8", speedup=1.4)]).key == "cast"
