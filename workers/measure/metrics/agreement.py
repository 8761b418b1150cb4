"""Agreement: the share of rows that answer the same class as float32; of maps, the share of equal pixels per row.

Rows that float32 itself does not answer are left out: the place of a NaN is no class.
"""

from collections.abc import Sequence

import numpy as np

from workers.measure.answers import Answers, fitting
from workers.measure.tallies import Bools, Floats, Hits, Sums, higher_is_better, means


def tally(first: Answers, *, rows: int) -> Hits | Sums | None:  # noqa: ARG001 - as every metric
    """Apply to class scores, to classes themselves, and to maps of classes if integers or labels make them known."""
    if len(first.outputs) == 1:
        return None
    if first.classes is not None:
        return Hits(_same)
    return None if first.maps is None else means(_equal_pixels, drop=higher_is_better)


def _same(answers: Answers) -> Bools:
    classes = fitting(answers.classes)
    return np.stack([answer == classes[0] for answer in classes])[:, answers.answered]


def _equal_pixels(answers: Answers) -> Sequence[Floats]:
    maps = fitting(answers.maps)
    counted = np.ones(maps[0].shape, np.bool_) if answers.map_labels is None else answers.map_labels >= 0
    pixels = counted.sum(axis=1)
    same = [((answer == maps[0]) & counted).sum(axis=1) for answer in maps]
    return [np.where(pixels > 0, equal / np.maximum(pixels, 1), 1.0)[answers.answered] for equal in same]
