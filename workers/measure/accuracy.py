"""Top-1 accuracy of several forms on the same rows: gathered as rows stream by, compared pair by pair at the end."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.intervals import Pairs, paired_difference, proportion
from app.domain.reports import Accuracy, ClassAccuracy, Difference, Flips

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A row that the variant answers otherwise than float32; `label` is None without labels."""

    row: int
    label: int | None
    float32: int
    variant: int


class AccuracyTally:
    """Answers and labels of all rows so far: eight bytes per row and form, never the outputs."""

    def __init__(self, forms: Sequence[str]) -> None:
        self._forms = tuple(forms)
        self._answers: list[list[Indices]] = [[] for _ in forms]
        self._labels: list[Indices] = []
        self._rows: list[int] = []

    def add(self, classes: Sequence[Indices], *, labels: Indices | None, rows: Sequence[int]) -> None:
        """Take one batch: per form the class it answers, int64[rows]. Either all batches have labels, or none."""
        for answers, answer in zip(self._answers, classes, strict=True):
            answers.append(answer)
        if labels is not None:
            self._labels.append(labels)
        self._rows.extend(rows)

    def result(self, classes: Sequence[str]) -> Accuracy | None:
        """Compare the last form with the first; None without labels. `classes` names them where it reaches."""
        if not self._labels:
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

    def ahead(self) -> dict[str, Difference]:
        """Compare the last form with those between it and the first; nothing without labels."""
        if not self._labels:
            return {}
        labels = np.concatenate(self._labels)
        right = [np.concatenate(parts) == labels for parts in self._answers]
        others = zip(self._forms[1:-1], right[1:-1], strict=True)
        return {form: paired_difference(_pairs(hits, right[-1])) for form, hits in others}

    def changes(self, most: int) -> list[Change]:
        """Return at most so many rows whose answer changed: first those lost, then gained, then moved, by number."""
        if not self._rows:
            return []
        before, after = (np.concatenate(self._answers[form]) for form in (0, -1))
        labels = np.concatenate(self._labels) if self._labels else np.full(len(before), -1)
        kind = np.where(before == labels, 0, np.where(after == labels, 1, 2))
        changed = np.flatnonzero(before != after)
        chosen = changed[np.argsort(kind[changed], kind="stable")][:most]
        return [
            Change(
                row=self._rows[place],
                label=int(labels[place]) if self._labels else None,
                float32=int(before[place]),
                variant=int(after[place]),
            )
            for place in chosen.tolist()
        ]

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
            name=name_of(label, names),
            rows=int((labels == label).sum()),
            float32=float(before[labels == label].mean()),
            variant=float(after[labels == label].mean()),
        )
        for label in np.unique(labels).tolist()
    )


def name_of(label: int, names: Sequence[str]) -> str:
    """Return a class' name, or its number where there are no names."""
    return names[label] if 0 <= label < len(names) else str(label)
