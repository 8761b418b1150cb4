"""Paired statistics: McNemar's exact test, and the bootstrap over rows for what is no share of rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import special

from app.domain.evidence import Interval

Floats = NDArray[np.float64]

RESAMPLES = 2000
SEED = 1979
CONFIDENCE = 0.95
_MOST_GROUPS = 200
# Where the acceleration would turn the percentiles around, they stop at the outermost resample.
_LEAST_SLOPE = 0.05
_CHUNK_ELEMENTS = 1 << 20

BOOTSTRAP = f"paired bootstrap over rows, {RESAMPLES} resamples (Efron 1979), BCa limits (Efron 1987)"
NEWCOMBE = "score intervals (Wilson 1927, Newcombe 1998 method 10), exact McNemar test (McNemar 1947)"
WILSON = "score interval (Wilson 1927)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is needed to compute a metric on any resample of the rows.

    Attributes:
        width: how many numbers per resample `values` holds at once, if more than the rows.
        values: from weights, float64[resamples, rows], how often each row was drawn, to the metric of each form,
            float64[resamples, forms].
    """

    rows: int
    values: Callable[[Floats], Floats]
    width: int = 0


def mcnemar(*, lost: int, gained: int) -> float:
    """Return the exact two-sided p-value that as many rows are lost as gained.

    McNemar 1947, Psychometrika 12:153; the exact conditional form: of the rows that changed, half would be gained
    (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91, equation 3). 1 where none changed.
    """
    changed = lost + gained
    return min(1.0, 2 * float(special.bdtr(min(lost, gained), changed, 0.5))) if changed else 1.0


def point(sample: Sample) -> Floats:
    """Return the metric on the rows as they are, float64[forms]."""
    found: Floats = sample.values(np.ones((1, sample.rows)))[0]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """A metric on resamples of the rows.

    Attributes:
        drawn: of rows drawn with replacement, float64[RESAMPLES, ...].
        left_out: of all rows but one group, float64[groups, ...].
    """

    drawn: Floats
    left_out: Floats

    def mapped(self, change: Callable[[Floats], Floats]) -> "Resampled":
        """Return what a function of the metric's values does on the same resamples."""
        return Resampled(drawn=change(self.drawn), left_out=change(self.left_out))


def resampled(samples: Sequence[Sample]) -> list[Resampled]:
    """Compute every metric on the same resamples of the rows, so that forms stay paired.

    Efron 1979, Annals of Statistics 7:1: rows are drawn with replacement, as many as there are. The seed is fixed: a
    report is the same each time. Memory does not grow with the rows.

    Returns:
        per sample its values, float64[..., forms].
    """
    made: dict[int, Resampled] = {}
    for rows in {sample.rows for sample in samples}:
        group = {number: sample for number, sample in enumerate(samples) if sample.rows == rows}
        each = max(1, _CHUNK_ELEMENTS // max(rows, *(sample.width for sample in group.values())))
        drawn = _values(list(group.values()), _drawn(rows, each=each))
        left_out = _values(list(group.values()), _left_out(rows, each=each))
        pairs = zip(drawn, left_out, strict=True)
        made.update(zip(group, (Resampled(drawn=one, left_out=other) for one, other in pairs), strict=True))
    return [made[number] for number in range(len(samples))]


def _values(samples: Sequence[Sample], weights: Iterable[Floats]) -> list[Floats]:
    parts = [[sample.values(chunk) for sample in samples] for chunk in weights]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def interval(value: float, found: Resampled, *, rows: int) -> Interval:
    """Return the 95 % interval of a value from its resamples, always with the value inside.

    Percentiles corrected for bias and acceleration (BCa; Efron 1987, J. Am. Stat. Assoc. 82:171, equations 2.3 and
    6.6), the acceleration from a jackknife over groups, and expanded for few rows by sqrt(n/(n-1)) and Student's
    quantile in place of the normal one (Hesterberg 2015, American Statistician 69:371).
    """
    drawn = found.drawn[np.isfinite(found.drawn)]
    if rows < 2 or np.ptp(drawn) == 0:  # noqa: PLR2004 - one row has no spread, nor have equal ones
        return Interval(value=value, low=value, high=value)
    below = ((drawn < value).sum() + (drawn == value).sum() / 2) / len(drawn)
    bias = special.ndtri(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn)))
    quantile = special.stdtrit(rows - 1, (1 + CONFIDENCE) / 2) * sqrt(rows / (rows - 1))
    ends = bias + np.array([-quantile, quantile])
    tails = special.ndtr(bias + ends / np.maximum(1 - _acceleration(found.left_out) * ends, _LEAST_SLOPE))
    low, high = np.quantile(drawn, tails)
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _acceleration(left_out: Floats) -> float:
    """Return how fast the spread changes with the value: a sixth of the skewness of the groups' influence."""
    known = left_out[np.isfinite(left_out)]
    influence = known.mean() - known
    # a power of two rounds nothing and leaves the skewness as it is, but the square of 1e155 is no float64
    influence = np.ldexp(influence, -np.frexp(np.abs(influence).max(initial=0.0))[1])
    spread = float((influence**2).sum())
    return float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _left_out(rows: int, *, each: int) -> Iterator[Floats]:
    """Yield weights that leave one group of rows out, float64[each, rows]: at most `_MOST_GROUPS` groups, at random."""
    if rows == 1:  # nothing would be left
        yield np.ones((1, 1))
        return
    groups = min(rows, _MOST_GROUPS)
    group = np.random.default_rng(SEED).permutation(rows) % groups
    for start in range(0, groups, each):
        numbers = np.arange(start, min(start + each, groups))
        yield (group != numbers[:, np.newaxis]).astype(np.float64)


def _drawn(rows: int, *, each: int) -> Iterator[Floats]:
    """Yield how often each row is drawn, float64[each, rows], until there are enough resamples."""
    generator = np.random.default_rng(SEED)
    for start in range(0, RESAMPLES, each):
        count = min(each, RESAMPLES - start)
        drawn = generator.integers(0, rows, (count, rows))
        drawn += np.arange(count)[:, np.newaxis] * rows
        yield np.bincount(drawn.reshape(-1), minlength=count * rows).reshape(count, rows).astype(np.float64)
