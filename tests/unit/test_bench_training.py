"""The arithmetic of the training benchmark, what it writes down, and what its tables say."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from app.domain.intervals import Pairs
from app.domain.recipes import PtqStatic
from benchmarks.qat import tables
from benchmarks.qat.arithmetic import (
    accuracy,
    came_back,
    equal_share,
    float_accuracy,
    largest_difference,
    mean_difference,
    pairs_of,
    ratios,
    spread,
)
from benchmarks.qat.journal import Journal, Taken, asked_of

PAIRS = Pairs(both=70, only_variant=10, only_float32=5, neither=15)
TAKEN = Taken(pairs=PAIRS, agreement=0.9, start_seconds=2.0)


@dataclass(slots=True)
class Counted:
    """Something to measure, and how often it was."""

    times: int = 0

    def __call__(self) -> Taken:
        self.times += 1
        return TAKEN


def test_a_spread_is_the_mean_with_its_extremes() -> None:
    found = spread([1.0, 4.0, 1.0])
    assert found is not None
    assert (found.mean, found.least, found.most) == (2.0, 1.0, 4.0)
    assert spread([]) is None


def test_pairs_count_the_rows_that_each_form_answers_right() -> None:
    variant, float32 = np.array([1, 1, 0, 0, 0], bool), np.array([1, 0, 1, 0, 0], bool)
    assert pairs_of(variant, float32) == Pairs(both=1, only_variant=1, only_float32=1, neither=2)


def test_accuracies_are_shares_of_all_rows() -> None:
    assert accuracy(PAIRS) == 0.8
    assert float_accuracy(PAIRS) == 0.75


def test_more_runs_on_the_same_rows_do_not_narrow_the_interval() -> None:
    one, three = mean_difference([PAIRS]), mean_difference([PAIRS] * 3)
    assert one.value == pytest.approx(0.05)
    assert (three.low, three.high) == pytest.approx((one.low, one.high))


def test_what_came_back_is_a_share_of_what_was_lost() -> None:
    assert came_back(0.78, nearest=0.7, float32=0.8) == pytest.approx(0.8)
    assert came_back(0.6, nearest=0.7, float32=0.8) == pytest.approx(-1.0)
    assert came_back(0.8, nearest=0.8, float32=0.8) is None


def test_a_ratio_is_the_median_of_neighbours() -> None:
    found = ratios([2.0, 6.0, 30.0], [1.0, 2.0, 3.0])
    assert (found.mean, found.least, found.most) == (3.0, 2.0, 10.0)


def test_numbers_are_compared_by_the_largest_of_their_tensor() -> None:
    one = {"w": np.array([4.0, -8.0]), "zero_point": np.array([3])}
    other = {"w": np.array([4.0, -7.0]), "zero_point": np.array([9])}
    assert largest_difference(one, other) == 0.125
    assert largest_difference(one, one) == 0.0


def test_equal_integers_are_counted_over_all_tensors() -> None:
    one = {"a": np.array([1, 2, 3]), "b": np.array([4])}
    assert equal_share(one, {"a": np.array([1, 2, 0]), "b": np.array([4])}) == 0.75


def test_a_record_is_measured_once(tmp_path: Path) -> None:
    measure, asked = Counted(), asked_of(PtqStatic(), test_rows=500)
    for _ in range(2):
        found = Journal(tmp_path / "found.json").taken("w8a8/PTQ/0", asked, Taken, measure)
        assert found == TAKEN
    assert measure.times == 1


def test_another_recipe_is_measured_anew(tmp_path: Path) -> None:
    measure, journal = Counted(), Journal(tmp_path / "found.json")
    for seed in range(2):
        journal.taken("w8a8/PTQ", asked_of(replace(PtqStatic(), seed=seed)), Taken, measure)
    assert measure.times == 2


def test_a_table_has_a_line_for_float32_and_for_every_row() -> None:
    better = replace(TAKEN, pairs=Pairs(both=74, only_variant=0, only_float32=1, neither=25))
    worse = replace(TAKEN, pairs=Pairs(both=70, only_variant=0, only_float32=5, neither=25))
    rows = {"nearest": {0: worse}, "learned": {0: better}}
    lines = tables.quality_table("W4A8", rows, nearest="nearest").splitlines()
    assert lines[-3].startswith("| float32 | 75.00 % (75.00 to 75.00) |")
    assert "| -5.00 (" in lines[-2]
    assert "| 80 % (80 to 80) |" in lines[-1]


def test_a_bar_that_is_missed_says_so() -> None:
    lost = replace(TAKEN, pairs=Pairs(both=70, only_variant=0, only_float32=1, neither=29))
    assert tables.trained_bars({0: lost}).count("missed") == 2
    assert tables.trained_bars({0: replace(TAKEN, agreement=0.99)}).count(", met") == 3
