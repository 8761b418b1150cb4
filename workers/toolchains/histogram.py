"""Histograms of activations that grow with their values, and the grids with the least squared error on one."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BINS = 8192
"""A multiple of 4, so that pairs of bins can be merged into the middle half."""

_STEPS = 200
_ROUNDS = 3
# So many values at a time: what is computed on them stays small beside a large activation.
_CHUNK = 2**20

Floats = npt.NDArray[np.float32]
Range = tuple[float, float]


@dataclass(slots=True)
class Histogram:
    """Counts of values in `BINS` equal bins over [-limit, limit]; the limit is a power of two, doubled when needed.

    So it does not matter in which order rows come, and memory does not depend on how many there are. Values that are
    not finite count for nothing.

    Attributes:
        counts: int64[BINS].
        low, high: the extremes, infinite while there are none.
    """

    limit: float = 2.0**-126
    low: float = np.inf
    high: float = -np.inf
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: Floats) -> None:
        """Count the values of an array of any shape."""
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            finite = chunk[np.isfinite(chunk)].astype(np.float64)
            if finite.size:
                self._count(finite)

    def _count(self, values: npt.NDArray[np.float64]) -> None:
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        while self.limit < max(-self.low, self.high):
            self._double()
        places = ((values / self.limit + 1) * (BINS / 2)).astype(np.int64)
        self.counts += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts[:] = 0
        self.counts[BINS // 4 : 3 * BINS // 4] = merged
        self.limit *= 2

    def merge(self, other: "Histogram") -> None:
        """Count what another histogram has counted."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        counts = Histogram(limit=other.limit, counts=other.counts.copy())
        while self.limit < counts.limit:
            self._double()
        while counts.limit < self.limit:
            counts._double()
        self.counts += counts.counts

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of every bin, float64[BINS]."""
        return (np.arange(BINS, dtype=np.float64) + 0.5) * (2 * self.limit / BINS) - self.limit


def least_squares_range(histogram: Histogram, *, steps: int, symmetric: bool) -> Range:
    """Return the range whose grid of so many steps has the least squared error on the histogram.

    The error of a value is that of rounding it to the grid or cutting it off at its end, taken at the middle of its
    bin. `symmetric` ranges are [-t, t] with t among 200 equal shares of the largest magnitude; others start at the
    extremes, and each end is moved in turn among 200 equal shares of itself, three times.
    """
    kept = histogram.counts > 0
    values, counts = histogram.centres[kept], histogram.counts[kept]
    shares = np.arange(1, _STEPS + 1) / _STEPS
    if symmetric:
        most = max(-histogram.low, histogram.high)
        ends = shares * most
        best = float(ends[np.argmin(_errors(values, counts, low=-ends, high=ends, steps=steps))])
        return -best, best
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    lows, highs = shares * low, shares * high
    for _ in range(_ROUNDS):
        if high > 0:
            errors = _errors(values, counts, low=np.full(_STEPS, low), high=highs, steps=steps)
            high = float(highs[np.argmin(errors)])
        if low < 0:
            errors = _errors(values, counts, low=lows, high=np.full(_STEPS, high), steps=steps)
            low = float(lows[np.argmin(errors)])
    return low, high


def least_squares_scale(histogram: Histogram, *, low: int, high: int) -> float:
    """Return the scale whose grid of integers `low` to `high`, zero among them, has the least squared error.

    It is one of 200 equal shares of the scale that holds every value; 0 where there are no values, or only zeros.
    """
    kept = histogram.counts > 0
    values, counts = histogram.centres[kept], histogram.counts[kept]
    full = max(histogram.high / high if high else 0.0, histogram.low / low if low else 0.0, 0.0)
    if not kept.any() or full < np.finfo(np.float32).tiny:
        return 0.0
    scales = np.arange(1, _STEPS + 1) / _STEPS * full
    errors = [counts @ (values - np.clip(np.round(values / scale), low, high) * scale) ** 2 for scale in scales]
    return float(scales[int(np.argmin(errors))])


def _errors(
    values: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    *,
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    steps: int,
) -> npt.NDArray[np.float64]:
    """Return the summed squared error of each range: float64[ranges]."""
    errors = np.empty(len(low))
    for each, (start, end) in enumerate(zip(low, high, strict=True)):
        scale = max((end - start) / steps, np.finfo(np.float32).tiny)
        zero_point = np.round(-start / scale)
        grid = np.clip(np.round(values / scale) + zero_point, 0, steps) - zero_point
        errors[each] = counts @ (values - grid * scale) ** 2
    return errors
