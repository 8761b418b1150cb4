"""F1: the harmonic mean of precision and recall of each class, averaged over the classes that the labels have."""

from collections.abc import Sequence

from app.domain.intervals import wilson
from workers.measure.answers import Answers, Ids, fitting
from workers.measure.class_counts import ClassCounts, Floats


def tally(first: Answers, *, rows: int) -> ClassCounts | None:  # noqa: ARG001 - as every metric
    """Apply to one class per row, answered as scores or as the class itself.

    Rows count wholly or not at all here, so resampling few changed rows sees too little spread: the interval is never
    narrower than that of a change which no row shows (Wilson 1927).
    """
    if first.class_labels is None or first.classes is None:
        return None
    return ClassCounts(_classes, ratio=_f1, doubt=lambda count: wilson(0, rows=count)[1])


def _classes(answers: Answers) -> tuple[Ids, Sequence[Ids]]:
    return fitting(answers.class_labels), fitting(answers.classes)


def _f1(met: Floats, answered: Floats, labelled: Floats) -> Floats:
    return 2 * met / (answered + labelled)
