"""The sentence about a choice."""

from dataclasses import replace

from app.domain.evidence import Interval
from app.domain.recipes import Budget, Cast
from tests.unit.test_search_choice import trial
from workers.jobs.search.reasons import missed, reason

BEST, FASTEST = trial("best", speedup=2.9, drop=0.002, noise=0.1), trial("fast", speedup=3.0, noise=0.3)


def test_it_names_recipe_speed_and_loss() -> None:
    said = reason(FASTEST, [FASTEST], [FASTEST], metric="top1", speedup=3.0)
    assert said.startswith("nncf ptq_static is 3.00 times as fast as float32 and loses nothing of top1")


def test_it_says_what_being_faster_would_cost() -> None:
    said = reason(BEST, [BEST, FASTEST], [BEST, FASTEST], metric="top1", speedup=2.9)
    assert "loses 0.2 points of top1" in said
    assert "3% faster and its outputs are further from float32's" in said


def test_it_says_of_one_that_is_less_exact_in_neither_way_that_it_loses_more() -> None:
    fastest = replace(FASTEST, noise=0.05, drop=Interval(value=0.004, low=0.003, high=0.005))
    assert "3% faster and loses more" in reason(BEST, [BEST, fastest], [BEST, fastest], metric="top1", speedup=2.9)


def test_it_does_not_say_that_nothing_beats_bfloat16_where_something_is_faster() -> None:
    cast = replace(BEST, recipe=Cast())
    said = reason(cast, [cast, FASTEST], [cast, FASTEST], metric="top1", speedup=2.9)
    assert "beats bfloat16" not in said
    assert "3% faster" in said


def test_it_says_that_nothing_beats_bfloat16() -> None:
    cast = replace(BEST, recipe=Cast())
    assert reason(cast, [cast], [cast], metric="top1", speedup=1.5).startswith("Nothing that keeps the budget beats")


def test_it_says_that_nothing_is_faster_than_float32() -> None:
    slow = trial("slow", speedup=0.9)
    assert "faster than float32" in reason(slow, [slow], [slow], metric="top1", speedup=0.9)


def test_a_budget_that_nothing_keeps_is_told_with_the_nearest_miss() -> None:
    said = missed(BEST, Budget(max_drop=0.001), metric="top1")
    assert (
        said
        == "Nothing keeps the budget in top1: nearest came nncf ptq_static, but it loses 0.002, and may lose 0.001."
    )
