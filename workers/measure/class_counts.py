"""Metrics that are a mean over classes: how often each class was labelled, answered and met, per row, sparsely kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from app.domain.evidence import ClassScore
from workers.measure.answers import Answers, Ids
from workers.measure.statistics import Sample
from workers.measure.tallies import Sampled, higher_is_better

Floats = NDArray[np.float64]
Ratio = Callable[[Floats, Floats, Floats], Floats]
"""From how often a class was met, answered and labelled to the metric on that class."""

MOST_CLASSES = 200
"""How many classes a score lists: those that lost most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Some rows' counts: `counts[i]` of class `classes[i]` in row `rows[i]`."""

    rows: Ids
    classes: Ids
    counts: Ids


class Grid:
    """Counts of all rows so far, by row and class."""

    def __init__(self) -> None:
        self._parts: list[Counts] = []

    def add(self, part: Counts) -> None:
        self._parts.append(part)

    def classes(self) -> Ids:
        """Return the classes that were counted, ascending."""
        return np.unique(np.concatenate([part.classes for part in self._parts]))

    def matrix(self, classes: Ids, *, rows: int) -> sparse.csr_array:
        """Return float64[classes, rows]; counts of other classes are left out."""
        found = np.concatenate([part.classes for part in self._parts])
        place = np.searchsorted(classes, found).clip(max=len(classes) - 1)
        known = classes[place] == found
        row = np.concatenate([part.rows for part in self._parts])[known]
        counts = np.concatenate([part.counts for part in self._parts])[known].astype(np.float64)
        return sparse.csr_array((counts, (place[known], row)), shape=(len(classes), rows))


class ClassCounts:
    """Keeps the counts. Only classes that labels have count: both forms are judged on the same ones.

    Args:
        of: from a batch to the labels and every form's answers, int64[rows] or int64[rows, pixels]; labels below 0 are
            ignored.
        doubt: half width that the interval has at least, given the rows.
        listed: whether the score lists the classes.
    """

    def __init__(
        self,
        of: Callable[[Answers], tuple[Ids, Sequence[Ids]]],
        *,
        ratio: Ratio,
        doubt: Callable[[int], float] = lambda _rows: 0.0,
        listed: bool = False,
    ) -> None:
        self._of = of
        self._ratio = ratio
        self._doubt = doubt
        self._listed = listed
        self._rows = 0
        self._labelled = Grid()
        self._answered: list[Grid] = []
        self._met: list[Grid] = []

    def add(self, answers: Answers) -> None:
        labels, forms = self._of(answers)
        if not self._answered:
            self._answered, self._met = [Grid() for _ in forms], [Grid() for _ in forms]
        counted = labels >= 0
        self._labelled.add(self._count(labels, where=counted))
        for answered, met, answer in zip(self._answered, self._met, forms, strict=True):
            answered.add(self._count(answer, where=counted))
            met.add(self._count(labels, where=counted & (answer == labels)))
        self._rows += len(labels)

    def result(self) -> Sampled | None:
        classes = self._labelled.classes()
        if not len(classes):
            return None
        labelled = self._labelled.matrix(classes, rows=self._rows)
        answered = [grid.matrix(classes, rows=self._rows) for grid in self._answered]
        met = [grid.matrix(classes, rows=self._rows) for grid in self._met]

        def values(weights: Floats) -> Floats:
            drawn = np.ascontiguousarray(weights.T)
            label = labelled @ drawn
            pairs = zip(met, answered, strict=True)
            return np.stack([self._mean(one @ drawn, other @ drawn, label) for one, other in pairs], axis=-1)

        return Sampled(
            sample=Sample(rows=self._rows, values=values, width=5 * len(classes)),
            drop=higher_is_better,
            doubt=self._doubt(self._rows),
            classes=tuple(self._by_class(classes, labelled, answered, met)) if self._listed else (),
        )

    def _mean(self, met: Floats, answered: Floats, label: Floats) -> Floats:
        """Average over the classes that the drawn rows' labels have; NaN if they have none."""
        present = label > 0
        by_class = np.where(present, self._ratio(met, answered, np.maximum(label, 1)), 0)
        count = present.sum(axis=0)
        total: Floats = by_class.sum(axis=0)
        average: Floats = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        return average

    def _by_class(
        self,
        classes: Ids,
        labelled: sparse.csr_array,
        answered: Sequence[sparse.csr_array],
        met: Sequence[sparse.csr_array],
    ) -> Iterator[ClassScore]:
        ones = np.ones(self._rows)
        label, rows = labelled @ ones, (labelled > 0) @ ones
        before, after = (self._ratio(met[form] @ ones, answered[form] @ ones, label) for form in (0, -1))
        worst = np.sort(np.argsort(after - before, kind="stable")[:MOST_CLASSES])
        for place in worst.tolist():
            yield ClassScore(
                name=str(classes[place]),
                rows=int(rows[place]),
                float32=float(before[place]),
                variant=float(after[place]),
            )

    def _count(self, classes: Ids, *, where: NDArray[np.bool_]) -> Counts:
        """Count how often each row has each class."""
        flat, kept = classes.reshape(len(classes), -1), where.reshape(len(classes), -1)
        rows, found, counts = [], [], []
        if flat.shape[1] == 1:
            row = np.flatnonzero(kept)
            return Counts(rows=row + self._rows, classes=flat[row, 0], counts=np.ones(len(row), np.int64))
        for number, (line, chosen) in enumerate(zip(flat, kept, strict=True)):
            present, count = np.unique(line[chosen], return_counts=True)
            rows.append(np.full(len(present), self._rows + number))
            found.append(present)
            counts.append(count)
        return Counts(rows=np.concatenate(rows), classes=np.concatenate(found), counts=np.concatenate(counts))
