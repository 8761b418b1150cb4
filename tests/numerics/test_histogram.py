"""Ranges of activations: histograms that grow, and what the observers make of them."""

import numpy as np
import numpy.typing as npt
import pytest

from workers.toolchains.histogram import BINS, Histogram, least_squares_range, least_squares_scale
from workers.toolchains.ort.histogram import entropy_range, percentile_range

Floats = npt.NDArray[np.float32]


def histogram(*rows: Floats) -> Histogram:
    made = Histogram()
    for row in rows:
        made.add(row)
    return made


def normal(count: int = 20_000, *, seed: int = 0, scale: float = 1) -> Floats:
    return np.random.default_rng(seed).normal(0, scale, count).astype(np.float32)


def error_of(values: Floats, low: float, high: float, *, steps: int) -> float:
    """Return the mean squared error of rounding to a grid over [low, high], written out value by value."""
    scale = (high - low) / steps
    zero_point = round(-low / scale)
    total = 0.0
    for value in values.astype(np.float64):
        number = min(max(round(value / scale) + zero_point, 0), steps)
        total += (value - (number - zero_point) * scale) ** 2
    return total / len(values)


def test_a_histogram_counts_every_value_in_its_bin() -> None:
    values = normal()
    made = histogram(values)
    edges = np.linspace(-made.limit, made.limit, BINS + 1)
    np.testing.assert_array_equal(made.counts, np.histogram(values.astype(np.float64), edges)[0])
    assert (made.low, made.high) == (values.min(), values.max())


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [normal(500, seed=seed, scale=10.0**power) for seed, power in enumerate(range(-3, 3))]
    forwards, backwards = histogram(*rows), histogram(*rows[::-1])
    np.testing.assert_array_equal(forwards.counts, backwards.counts)
    assert forwards.limit == backwards.limit


def test_a_row_of_zeros_first_leaves_the_bins_fine() -> None:
    made = histogram(np.zeros(100, np.float32), normal())
    assert made.limit < 2 * max(-made.low, made.high)
    assert made.counts.sum() == 20_100


def test_values_that_are_not_finite_count_for_nothing() -> None:
    made = histogram(np.array([np.nan, np.inf, -np.inf, 1, -2], np.float32))
    assert (made.low, made.high, made.counts.sum()) == (-2, 1, 2)


def test_an_empty_array_leaves_no_range() -> None:
    made = histogram(np.zeros((0, 3), np.float32))
    assert made.low > made.high


@pytest.mark.parametrize("outlier", [0.0, 30.0])
def test_least_squares_finds_the_best_symmetric_range(outlier: float) -> None:
    values = np.append(normal(3000), np.float32(outlier))
    low, high = least_squares_range(histogram(values), steps=254, symmetric=True)
    largest = float(np.abs(values).max())
    best = min(error_of(values, -end, end, steps=254) for end in np.linspace(largest / 200, largest, 200))
    # a bin is at most a 30th of a step wide here, so its middle stands for its values within that
    assert error_of(values, low, high, steps=254) <= 1.05 * best


def test_least_squares_finds_the_best_two_sided_range() -> None:
    values = np.append(np.maximum(normal(2000) + 1, -0.5), np.float32(25)).astype(np.float32)
    low, high = least_squares_range(histogram(values), steps=255, symmetric=False)
    shares = np.linspace(0.02, 1, 50)
    best = min(
        error_of(values, low_share * values.min(), high_share * values.max(), steps=255)
        for low_share in shares
        for high_share in shares
    )
    # moving one end at a time can end beside the best pair; here it may cost a tenth
    assert error_of(values, low, high, steps=255) <= 1.1 * best


def test_least_squares_keeps_everything_where_nothing_is_far_out() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    low, high = least_squares_range(histogram(values), steps=254, symmetric=True)
    assert high > 0.98
    assert low == -high


def test_least_squares_leaves_an_unused_side_at_zero() -> None:
    low, high = least_squares_range(histogram(np.abs(normal())), steps=255, symmetric=False)
    assert low == 0
    assert high > 2


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_a_percentile_holds_its_share_of_the_magnitudes(percentile: float) -> None:
    values = normal()
    low, high = percentile_range(histogram(values), percentile=percentile, symmetric=True)
    inside = np.mean((values >= low) & (values <= high)) * 100
    # the end lies on the edge of a bin, which holds at most a four-hundredth of the values
    assert inside == pytest.approx(percentile, abs=0.25)
    assert low == -high


def test_a_percentile_of_two_sides_leaves_out_half_at_each() -> None:
    values = normal()
    low, high = percentile_range(histogram(values), percentile=98.0, symmetric=False)
    assert np.mean(values < low) * 100 == pytest.approx(1, abs=0.25)
    assert np.mean(values > high) * 100 == pytest.approx(1, abs=0.25)


def test_every_value_lies_in_the_hundredth_percentile() -> None:
    values = normal()
    low, high = percentile_range(histogram(values), percentile=100.0, symmetric=False)
    width = 2 * histogram(values).limit / BINS
    assert low <= values.min() + width
    assert high >= values.max() - width


def test_entropy_leaves_a_far_value_out() -> None:
    values = np.append(normal(), np.float32(60))
    low, high = entropy_range(histogram(values), one_sided=False)
    assert high < 30
    assert low >= values.min()


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 15), (-3, 12)])
def test_the_best_scale_errs_no_more_than_one_that_holds_every_value(low: int, high: int) -> None:
    values = normal(scale=3) if low else np.abs(normal(scale=3))

    def error(scale: float) -> float:
        grid = np.clip(np.round(values.astype(np.float64) / scale), low, high) * scale
        return float(np.mean((values - grid) ** 2))

    full = max(values.max() / high, values.min() / low if low else 0)
    found = least_squares_scale(histogram(values), low=low, high=high)
    assert 0 < found < full
    # the histogram knows a value to half a bin: 2 * 16 / 8192 / 2
    assert np.sqrt(error(found)) <= np.sqrt(error(full)) + 2**-9


@pytest.mark.parametrize("values", [np.zeros(8, np.float32), np.full(3, np.nan, np.float32), np.array([], np.float32)])
def test_where_nothing_but_zeros_was_seen_there_is_no_best_scale(values: Floats) -> None:
    assert least_squares_scale(histogram(values), low=-8, high=7) == 0


def test_merged_histograms_count_as_one_would() -> None:
    first, second = normal(scale=0.01), normal(seed=1, scale=30)
    for parts in ((first, second), (second, first)):
        merged = histogram(parts[0])
        merged.merge(histogram(parts[1]))
        whole = histogram(first, second)
        assert (merged.low, merged.high, merged.limit) == (whole.low, whole.high, whole.limit)
        np.testing.assert_array_equal(merged.counts, whole.counts)
