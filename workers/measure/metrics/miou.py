"""mIoU: intersection over union of answered and labelled pixels of each class, averaged over the labels' classes."""

from collections.abc import Sequence

from workers.measure.answers import Answers, Ids, fitting
from workers.measure.class_counts import ClassCounts, Floats


def tally(first: Answers, *, rows: int) -> ClassCounts | None:  # noqa: ARG001 - as every metric
    """Apply to maps of classes, answered as scores per class, (rows, classes, …) or (rows, …, classes), or as maps.

    Pixels are summed over all rows before the ratio is taken (Everingham et al. 2010, section 4.2). Pixels whose label
    is negative count for nothing, nor do those labelled 255 unless the model tells more classes apart.
    """
    return None if first.map_labels is None else ClassCounts(_maps, ratio=_iou, listed=True)


def _maps(answers: Answers) -> tuple[Ids, Sequence[Ids]]:
    return fitting(answers.map_labels), fitting(answers.maps)


def _iou(met: Floats, answered: Floats, labelled: Floats) -> Floats:
    return met / (answered + labelled - met)
