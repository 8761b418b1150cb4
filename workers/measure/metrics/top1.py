"""Top-1: the share of rows whose best-scored class is the label."""

import numpy as np

from workers.measure.answers import Answers, fitting
from workers.measure.tallies import Bools, Hits


def tally(first: Answers, *, rows: int) -> Hits | None:  # noqa: ARG001 - as every metric
    """Apply to one class per row, answered as scores or as the class itself."""
    return None if first.class_labels is None or first.classes is None else Hits(_hits)


def _hits(answers: Answers) -> Bools:
    return np.stack([answer == answers.class_labels for answer in fitting(answers.classes)])
