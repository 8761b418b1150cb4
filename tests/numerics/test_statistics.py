"""McNemar's test and the bootstrap against references, and whether intervals cover what they promise."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from app.domain.intervals import Pairs, paired_difference
from workers.measure.statistics import RESAMPLES, Resampled, Sample, interval, mcnemar, resampled

Floats = npt.NDArray[np.float64]


def mean_of(values: Floats) -> Sample:
    """Return the sample whose metric is the mean of one column per form, float64[rows, forms]."""
    return Sample(rows=len(values), values=lambda weights: weights @ values / weights.sum(axis=1, keepdims=True))


def limits(values: Floats) -> tuple[float, float]:
    found = resampled([mean_of(values[:, np.newaxis])])[0].mapped(lambda each: each[..., 0])
    made = interval(float(values.mean()), found, rows=len(values))
    return made.low, made.high


def test_mcnemar_gives_the_published_p_value() -> None:
    # Bentur et al. 2009, as in Fagerland, Lydersen and Laake 2013, BMC Med. Res. Methodol. 13:91
    assert mcnemar(lost=7, gained=1) == pytest.approx(0.0703, abs=5e-5)


@given(lost=st.integers(0, 300), gained=st.integers(0, 300))
def test_mcnemar_doubles_the_smaller_tail(lost: int, gained: int) -> None:
    expected = 1.0 if lost + gained == 0 else min(1.0, 2 * stats.binom.cdf(min(lost, gained), lost + gained, 0.5))
    assert mcnemar(lost=lost, gained=gained) == pytest.approx(expected)


def test_forms_are_drawn_together() -> None:
    values = np.random.default_rng(0).normal(size=(50, 1))
    (found,) = resampled([mean_of(np.hstack([values, values + 1]))])
    np.testing.assert_allclose(found.drawn[:, 1] - found.drawn[:, 0], 1)
    assert found.drawn.shape == (RESAMPLES, 2)


@pytest.mark.parametrize("rows", [7, 3000])
def test_metrics_of_different_size_are_drawn_side_by_side(rows: int) -> None:
    small, large = (np.random.default_rng(0).normal(size=(count, 1)) for count in (20, rows))
    together = resampled([mean_of(small), mean_of(large)])
    alone = [resampled([mean_of(values)])[0] for values in (small, large)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.drawn, other.drawn)


def test_the_spread_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))
    # 2,000 resamples know a standard deviation to 1/sqrt(4000) = 1.6 %; three times that
    assert resampled([mean_of(values)])[0].drawn.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_limits_are_those_of_the_reference() -> None:
    values = np.random.default_rng(3).lognormal(size=400)
    found = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(0))
    reference = found.confidence_interval
    # resampling noise of a limit is about 3 % of the half width at 2,000 resamples; three times that
    tolerance = 0.1 * (reference.high - reference.low) / 2
    assert limits(values) == pytest.approx((reference.low, reference.high), abs=tolerance)


def test_few_rows_widen_the_interval_to_students() -> None:
    values = np.random.default_rng(1).normal(size=10)
    low, high = limits(values)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    # normal values, but a bootstrap of ten of them: a sixth of the width is what their own skewness may move
    assert high - low == pytest.approx(reference.high - reference.low, rel=1 / 6)


def test_rows_without_spread_have_an_interval_of_no_width() -> None:
    assert limits(np.full(30, 0.25)) == (0.25, 0.25)
    assert limits(np.array([1.0])) == (1.0, 1.0)


def test_resamples_without_a_value_are_left_out() -> None:
    drawn = np.array([np.nan, *np.linspace(0, 1, 99)])
    found = interval(0.5, Resampled(drawn=drawn, left_out=np.array([np.nan, 0.4, 0.6])), rows=50)
    assert 0 <= found.low < 0.5 < found.high <= 1


def missed(truth: float, one: Callable[[], tuple[float, float]], *, times: int) -> tuple[float, float]:
    """Return how often the truth lies below and above an interval."""
    found = np.array([one() for _ in range(times)])
    return float((found[:, 0] > truth).mean()), float((found[:, 1] < truth).mean())


@pytest.mark.parametrize(("lost", "gained"), [(0.01, 0.01), (0.03, 0.02), (0.1, 0.08)])
def test_the_interval_of_a_paired_share_covers_what_it_promises(lost: float, gained: float) -> None:
    generator = np.random.default_rng(0)

    def one() -> tuple[float, float]:
        both, variant, float32, neither = generator.multinomial(500, (0.8 - lost, gained, lost, 0.2 - gained)).tolist()
        found = paired_difference(Pairs(both=both, only_variant=variant, only_float32=float32, neither=neither))
        return found.low, found.high

    below, above = missed(gained - lost, one, times=2000)
    # 2.5 % on each side; three standard errors of 2,000 trials are 1.05 %. Below, it may be wider than it must
    assert below <= 0.036
    assert above <= 0.036
    assert below + above >= 0.005


@pytest.mark.parametrize("skewed", [False, True])
def test_the_bootstrap_interval_covers_what_it_promises(*, skewed: bool) -> None:
    generator = np.random.default_rng(0)

    def one() -> tuple[float, float]:
        return limits(generator.lognormal(0, 0.5, 200) if skewed else generator.normal(0, 1, 200))

    below, above = missed(float(np.exp(0.125)) if skewed else 0.0, one, times=400)
    # 2.5 % on each side; three standard errors of 400 trials are 2.3 %, and skewness costs the upper side one more
    assert below <= 0.05
    assert above <= (0.06 if skewed else 0.05)


def test_values_whose_squares_no_float64_holds_have_the_same_limits_in_their_own_unit() -> None:
    values = np.random.default_rng(5).exponential(1, 60)
    scale = 2.0**600  # a power of two rounds nothing
    low, high = limits(values)
    assert limits(values * scale) == (low * scale, high * scale)
