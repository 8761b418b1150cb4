"""Top-5: the share of rows whose label is among the five best-scored classes."""

import numpy as np

from workers.measure.answers import Answers, fitting
from workers.measure.tallies import Bools, Hits

FIVE = 5


def tally(first: Answers, *, rows: int) -> Hits | None:  # noqa: ARG001 - as every metric
    """Apply to one class per row and scores of more than five classes."""
    if first.class_labels is None or first.scores is None or first.scores[0].shape[1] <= FIVE:
        return None
    return Hits(_hits)


def _hits(answers: Answers) -> Bools:
    labels = fitting(answers.class_labels)
    best = [np.argpartition(-scores, FIVE - 1, axis=1)[:, :FIVE] for scores in fitting(answers.scores)]
    return np.stack([(five == labels[:, np.newaxis]).any(axis=1) for five in best])
