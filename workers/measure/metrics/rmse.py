"""RMSE: the root of the mean squared difference between the first output and the labels."""

import numpy as np

from workers.measure.answers import Answers
from workers.measure.tallies import Floats, Sums, lower_is_better, mean


def tally(first: Answers, *, rows: int) -> Sums | None:  # noqa: ARG001 - as every metric
    """Apply to values as labels, as many per row as the first output has."""
    return None if first.targets is None else Sums(_columns, close=_root, drop=lower_is_better)


def _columns(answers: Answers) -> Floats:
    sums = np.stack([(errors**2).sum(axis=1) for errors in answers.errors])
    return np.stack([sums, np.broadcast_to(answers.finite_targets.sum(axis=1), sums.shape)])


def _root(sums: Floats) -> Floats:
    return np.sqrt(mean(sums))
