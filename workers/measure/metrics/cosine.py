"""Cosine: that between a form's outputs and float32's, all outputs of a row together, averaged over the rows."""

from collections.abc import Sequence

import numpy as np

from workers.measure.answers import Answers
from workers.measure.tallies import Floats, Sums, higher_is_better, means


def tally(first: Answers, *, rows: int) -> Sums | None:  # noqa: ARG001 - as every metric
    """Apply to outputs that are numbers, not classes."""
    return means(_cosines, drop=higher_is_better) if first.has_floats and len(first.outputs) > 1 else None


def _cosines(answers: Answers) -> Sequence[Floats]:
    return [np.ones(len(answers.rows)), *(close.cosine for close in answers.closeness)]
