"""Ranges that follow from histograms of activations as ONNX Runtime works them out."""

import contextlib
import io

import numpy as np
from onnxruntime.quantization.calibrate import HistogramCollector

from workers.toolchains.histogram import BINS, Histogram, Range

# For KL divergence: so many bins at least become one of the levels, and the library's loop stays within a second.
_ENTROPY_BINS = 1024
_ENTROPY_LEVELS = 256


def percentile_range(histogram: Histogram, *, percentile: float, symmetric: bool) -> Range:
    """Return the range that holds `percentile` percent of the values, as ONNX Runtime computes it.

    `symmetric` counts magnitudes; otherwise half of what is left out lies at each end.
    """
    edges = np.linspace(-histogram.limit, histogram.limit, BINS + 1).astype(np.float32)
    counts = histogram.counts
    if symmetric:
        counts = counts[BINS // 2 :] + counts[: BINS // 2][::-1]
        edges = edges[BINS // 2 :]
    collector = HistogramCollector(
        method="percentile",
        symmetric=symmetric,
        num_bins=len(counts),
        num_quantized_bins=_ENTROPY_LEVELS,
        percentile=percentile,
        scenario="same",
    )
    collector.histogram_dict["x"] = (counts, edges, np.float32(histogram.low), np.float32(histogram.high))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        found = collector.compute_percentile()["x"]
    return float(found[0]), float(found[1])


def entropy_range(histogram: Histogram, *, one_sided: bool) -> Range:
    """Return the range with the least KL divergence (Migacz 2017), as ONNX Runtime computes it.

    The library looks at ranges around zero: 256 levels there, twice as many where all 256 will lie on one side.
    """
    levels = _ENTROPY_LEVELS * 2 if one_sided else _ENTROPY_LEVELS
    used = _ceil_to(max(-histogram.low, histogram.high) / histogram.limit * (BINS / 2), BINS // _ENTROPY_BINS)
    used = min(max(used, levels * (BINS // _ENTROPY_BINS) // 2), BINS // 2)
    middle = histogram.counts[BINS // 2 - used : BINS // 2 + used]
    counts = middle.reshape(-1, BINS // _ENTROPY_BINS).sum(axis=1)
    limit = used / (BINS / 2) * histogram.limit
    edges = np.linspace(-limit, limit, len(counts) + 1).astype(np.float32)
    collector = HistogramCollector(
        method="entropy",
        symmetric=False,
        num_bins=len(counts),
        num_quantized_bins=levels,
        percentile=100.0,
        scenario="same",
    )
    seen = (counts, edges, np.float32(histogram.low), np.float32(histogram.high))
    low, high = collector.get_entropy_threshold(seen, levels)
    return float(low), float(high)


def _ceil_to(value: float, multiple: int) -> int:
    return int(-(-value // multiple) * multiple)
