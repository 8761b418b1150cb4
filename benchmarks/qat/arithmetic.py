"""What is computed from answers and weights: differences of several runs, what came back, how far two trainings are
apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.intervals import Pairs, paired_difference
from app.domain.reports import Difference
from benchmarks.serving.arithmetic import median, percentile

Flags = NDArray[np.bool_]
Numbers = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The mean of some runs, the smallest and the largest."""

    mean: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return what several runs gave; None of none."""
    if not values:
        return None
    return Spread(mean=sum(values) / len(values), least=min(values), most=max(values))


def pairs_of(variant: Flags, float32: Flags) -> Pairs:
    """Count the rows that each of two forms answers right."""
    return Pairs(
        both=int((variant & float32).sum()),
        only_variant=int((variant & ~float32).sum()),
        only_float32=int((~variant & float32).sum()),
        neither=int((~variant & ~float32).sum()),
    )


def accuracy(pairs: Pairs) -> float:
    """Return the share of rows that the variant answers right."""
    return (pairs.both + pairs.only_variant) / pairs.rows


def float_accuracy(pairs: Pairs) -> float:
    """Return the share of rows that float32 answers right."""
    return (pairs.both + pairs.only_float32) / pairs.rows


def mean_difference(runs: Sequence[Pairs]) -> Difference:
    """Return the mean of the runs' paired differences, with the interval of one run.

    All runs answer the same rows, so more of them are no more rows, and the interval does not shrink with them.
    """
    share = 1 / len(runs)
    return paired_difference(
        Pairs(
            both=share * sum(each.both for each in runs),
            only_variant=share * sum(each.only_variant for each in runs),
            only_float32=share * sum(each.only_float32 for each in runs),
            neither=share * sum(each.neither for each in runs),
        )
    )


def came_back(found: float, *, nearest: float, float32: float) -> float | None:
    """Return the share of the accuracy lost by rounding to nearest that came back; None where nothing was lost."""
    return (found - nearest) / (float32 - nearest) if nearest < float32 else None


def ratios(times: Sequence[float], others: Sequence[float]) -> Spread:
    """Return the median of the ratios of times taken one after the other, and the 5th and 95th percentile."""
    found = [time / other for time, other in zip(times, others, strict=True)]
    return Spread(mean=median(found), least=percentile(found, 0.05), most=percentile(found, 0.95))


def largest_difference(one: Numbers, other: Numbers) -> float:
    """Return how far any number lies from its like, as a share of the largest of its tensor."""
    found = 0.0
    for name, mine in one.items():
        theirs = other[name]
        if mine.size and np.issubdtype(mine.dtype, np.floating):
            reach = float(np.abs(mine).max()) or 1.0
            found = max(found, float(np.abs(np.subtract(mine, theirs)).max()) / reach)
    return found


def equal_share(one: Numbers, other: Numbers) -> float:
    """Return the share of stored integers that are the same."""
    same = counted = 0
    for name, mine in one.items():
        if np.issubdtype(mine.dtype, np.integer):
            same, counted = same + int((mine == other[name]).sum()), counted + mine.size
    return same / counted
