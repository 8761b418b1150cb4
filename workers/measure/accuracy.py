"""Top-1 accuracy of several forms on the same rows: gathered as rows stream by, compared pair by pair at the end."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import DatasetUnfit
from app.domain.reports import Accuracy, ClassAccuracy, Flips
from workers.measure.intervals import Pairs, paired_difference, proportion

Indices = NDArray[np.int64]


class AccuracyTally:
    """Answers and labels of all rows so far: eight bytes per row and form, never the outputs."""

    def __init__(self, forms: Sequence[str]) -> None:
        self._forms = tuple(forms)
        self._answers: list[list[Indices]] = [[] for _ in forms]
        self._labels: list[Indices] = []
        self._rows: list[int] = []

    def add(self, logits: Sequence[NDArray[Any]], *, labels: Indices, rows: Sequence[int]) -> None:
        """Take one batch: per form its first output, (rows, classes).

        Raises:
            DatasetUnfit: a label that is no class of the model.
        """
        classes = logits[0].shape[1]
        if labels.max() >= classes:
            row = rows[int(labels.argmax())]
            raise DatasetUnfit(
                f"Row {row} is labelled {labels.max()}, but the model tells {classes} classes apart: "
                f"use labels 0 to {classes - 1}."
            )
        for answers, scores in zip(self._answers, logits, strict=True):
            answers.append(scores.argmax(axis=1))
        self._labels.append(labels)
        self._rows.extend(rows)

    def result(self, classes: Sequence[str]) -> Accuracy | None:
        """Compare the last form with the first; None if no row came. `classes` names the labels where it reaches."""
        if not self._rows:
            return None
        labels = np.concatenate(self._labels)
        answers = [np.concatenate(parts) for parts in self._answers]
        right = [answer == labels for answer in answers]
        before, after = right[0], right[-1]
        return Accuracy(
            metric="top1",
            measured={
                form: proportion(int(hits.sum()), rows=len(labels))
                for form, hits in zip(self._forms, right, strict=True)
            },
            difference=paired_difference(_pairs(before, after)),
            flips=self._flips(before, after, moved=answers[0] != answers[-1]),
            classes=_by_class(labels, before, after, names=classes),
        )

    def _flips(self, before: NDArray[np.bool_], after: NDArray[np.bool_], *, moved: NDArray[np.bool_]) -> Flips:
        rows = np.array(self._rows, np.int64)
        return Flips(
            gained=tuple(rows[~before & after].tolist()),
            lost=tuple(rows[before & ~after].tolist()),
            moved=tuple(rows[~before & ~after & moved].tolist()),
        )


def _pairs(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Pairs:
    return Pairs(
        both=int((before & after).sum()),
        only_variant=int((~before & after).sum()),
        only_float32=int((before & ~after).sum()),
        neither=int((~before & ~after).sum()),
    )


def _by_class(
    labels: Indices, before: NDArray[np.bool_], after: NDArray[np.bool_], *, names: Sequence[str]
) -> tuple[ClassAccuracy, ...]:
    return tuple(
        ClassAccuracy(
            name=names[label] if label < len(names) else str(label),
            rows=int((labels == label).sum()),
            float32=float(before[labels == label].mean()),
            variant=float(after[labels == label].mean()),
        )
        for label in np.unique(labels).tolist()
    )
