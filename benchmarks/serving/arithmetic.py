"""What is computed from the times of requests: percentiles, goodput, gaps, and the moments of a Poisson process."""

import math
import random
from collections.abc import Sequence
from itertools import pairwise


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that at least `share` (above 0, up to 1) of the values do not exceed; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two in the middle; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def goodput(latencies: Sequence[float], *, limit: float, seconds: float) -> float:
    """Return how many right answers a second came within `limit` seconds of the moment they were due to be asked."""
    return sum(latency <= limit for latency in latencies) / seconds


def poisson_schedule(*, rate: float, seconds: float, seed: int) -> list[float]:
    """Return the moments, in seconds from the start, of a Poisson process of `rate` events a second."""
    generator = random.Random(seed)
    moments: list[float] = []
    moment = generator.expovariate(rate)
    while moment < seconds:
        moments.append(moment)
        moment += generator.expovariate(rate)
    return moments


def longest_gap(moments: Sequence[float], *, begin: float, end: float) -> float:
    """Return the longest time between two neighbouring moments, the block's begin and end counted as moments."""
    edges = [begin, *sorted(moments), end]
    return max(after - before for before, after in pairwise(edges))


def seconds_to_normal(moments: Sequence[tuple[float, bool]], *, since: float) -> float:
    """Return how long after `since` the last request that was due then was bad; 0 if none was.

    Args:
        moments: when a request was due, and whether it was answered rightly and in time.
    """
    return max((due - since for due, good in moments if due >= since and not good), default=0.0)
