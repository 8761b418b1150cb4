"""Ranges from a running histogram: what NNCF's own does not do right, or not at all."""

from typing import Any

import nncf.tensor.functions as fns
import numpy as np
from nncf.common.tensor_statistics.collectors import HistogramAggregator
from nncf.common.tensor_statistics.statistic_point import StatisticPointsContainer
from nncf.common.tensor_statistics.statistics import MinMaxTensorStatistic
from nncf.tensor.definitions import TensorDataType
from numpy.typing import NDArray

_PERCENT = 100
Range = tuple[float, float]


def watch_magnitudes(points: StatisticPointsContainer, *, symmetric: bool, percentile: float | None) -> None:
    """Put `RangeAggregator`s in the place of NNCF's histograms.

    Args:
        percentile: None for the least squared error.
    """
    for _, _, collector in points.get_tensor_collectors():
        for key, aggregator in collector.aggregators.items():
            if isinstance(aggregator, HistogramAggregator):
                better = RangeAggregator(aggregator, symmetric=symmetric, percentile=percentile)
                collector.replace_aggregator(key, better)


class RangeAggregator(HistogramAggregator):  # type: ignore[misc]
    """One histogram of 2,048 bins per tensor, however many rows pass.

    NNCF takes a symmetric range from the upper end alone, and a percentile from the mean over rows of each row's own,
    which clips small tensors; this one takes the larger end, and the percentile of all values.
    """

    def __init__(self, replaced: HistogramAggregator, *, symmetric: bool, percentile: float | None) -> None:
        super().__init__(num_samples=replaced.num_samples)
        self._replaced_hash = hash(replaced)
        self._symmetric = symmetric
        self._percentile = percentile

    def __hash__(self) -> int:
        return self._replaced_hash

    def _aggregate_impl(self) -> dict[str, Any]:
        low, high = self._non_linear_param_search() if self._percentile is None else self._share(self._percentile)
        # the lower end still says whether there is anything below zero
        ends = (low, max(-low, high)) if self._symmetric else (low, high)
        return {
            name: fns.tensor(
                end, backend=self.histogram.backend, device=self.histogram.device, dtype=TensorDataType.float32
            )
            for name, end in zip((MinMaxTensorStatistic.MIN_STAT, MinMaxTensorStatistic.MAX_STAT), ends, strict=True)
        }

    def _share(self, percentile: float) -> Range:
        counts: NDArray[np.float64] = np.asarray(self.histogram.data, np.float64)
        edges = np.linspace(self.min_val, self.max_val, len(counts) + 1)
        cut = _around_zero if self._symmetric else _both_ends
        return cut(counts, edges, share=percentile / _PERCENT)


def _around_zero(counts: NDArray[np.float64], edges: NDArray[np.float64], *, share: float) -> Range:
    """Return the narrowest range around zero that holds the share, less what no value reaches."""
    reach = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
    order = np.argsort(reach, kind="stable")
    held = np.cumsum(counts[order])
    most = float(reach[order][np.searchsorted(held, share * held[-1])])
    return max(float(edges[0]), -most), min(float(edges[-1]), most)


def _both_ends(counts: NDArray[np.float64], edges: NDArray[np.float64], *, share: float) -> Range:
    """Return the range that leaves out half of the rest on either side."""
    below = np.cumsum(counts)
    outside = (1 - share) / 2 * below[-1]
    low = int(np.searchsorted(below, outside, side="right"))
    high = int(np.searchsorted(below, below[-1] - outside))
    return float(edges[min(low, high)]), float(edges[high + 1])
