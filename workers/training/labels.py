"""Labels of rows, checked before training, and taken from their file a batch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.domain.errors import DatasetUnfit
from app.domain.recipes import Qat
from app.domain.tensors import Signature
from workers.training.losses import IGNORED
from workers.training.rows import Rows

_LEAST_CLASSES = 2
_VOID = 255
"""What maps of classes say of a place that counts for nothing, where the model tells fewer classes apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """
    Attributes:
        stored: [rows, ...], as the rows have them: large ones are a mapped file.
        classes: how many the model tells apart; None for values.
    """

    stored: NDArray[Any]
    classes: int | None

    def take(self, places: NDArray[np.int64]) -> Tensor:
        """Return the labels of some rows: int64 classes, `IGNORED` where a place counts for nothing; or values."""
        labels = self.stored[places]
        if self.classes is None:
            return torch.from_numpy(labels.astype(np.float32))
        made = labels.astype(np.int64)
        if made.ndim > 1:
            made[(made < 0) | ((made == _VOID) & (self.classes <= _VOID))] = IGNORED
        return torch.from_numpy(made)


def labels_of(rows: Rows, recipe: Qat, signature: Signature, *, trains: bool) -> Labels:
    """Check the labels of rows, some at a time, and return them.

    Raises:
        DatasetUnfit: there are none, or classes that the model does not have, or one class only.
    """
    stored, output = rows.labels, signature.outputs[0]
    if stored is None:
        raise DatasetUnfit(
            f"The loss {recipe.loss!r} needs labels, and the training rows have none: take 'distillation'."
        )
    if recipe.loss == "mse":
        return _values(stored, output.shape[1:], rows=rows)
    if stored.dtype.kind not in "iu":
        raise DatasetUnfit("The loss 'cross_entropy' needs classes as labels, and these are real numbers: take 'mse'.")
    classes = output.shape[1] if len(output.shape) > 1 else None
    if classes is None or not _fit(stored.shape[1:], output.shape[2:]):
        raise DatasetUnfit(
            f"The labels do not fit the model's first output, {output.describe()}: cross_entropy takes one class for "
            "each row, or a map of classes."
        )
    return _classes(Labels(stored=stored, classes=int(classes)), rows=rows, trains=trains)


def _classes(labels: Labels, *, rows: Rows, trains: bool) -> Labels:
    assert labels.classes is not None  # noqa: S101 - for the type checker
    seen: set[int] = set()
    for start, part in _parts(labels, rows):
        wrong = (part >= labels.classes) | ((part < 0) & (part != IGNORED if part.ndim > 1 else True))
        if wrong.any():
            at = start + int(np.argwhere(wrong)[0][0])
            raise DatasetUnfit(
                f"Row {rows.numbers[at]} is labelled {int(part[wrong][0])}, but the model tells {labels.classes} "
                f"classes apart, 0 to {labels.classes - 1}: mend the labels."
            )
        seen.update(np.unique(part[part != IGNORED]).tolist())
    if trains and len(seen) < _LEAST_CLASSES:
        raise DatasetUnfit(
            "All training rows have one class, from which nothing can be told apart: send rows of others."
        )
    return labels


def _values(stored: NDArray[Any], shape: tuple[int | None, ...], *, rows: Rows) -> Labels:
    wanted = [size for size in shape if size != 1]
    given = [size for size in stored.shape[1:] if size != 1]
    if len(wanted) != len(given) or any(a is not None and a != b for a, b in zip(wanted, given, strict=True)):
        raise DatasetUnfit(
            f"The labels are {list(stored.shape[1:])} a row, but the model's first output is {list(shape)}: send "
            "values of that shape."
        )
    labels = Labels(stored=stored, classes=None)
    if not all(np.isfinite(part).all() for _, part in _parts(labels, rows)):
        raise DatasetUnfit("Some labels are not finite numbers: mend them.")
    return labels


def _parts(labels: Labels, rows: Rows) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield all labels, some rows at a time, with the place of the first."""
    for places in rows.in_turn():
        yield int(places[0]), labels.take(places).numpy()


def _fit(given: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether labels have a place for every answer; a size that only rows tell fits any."""
    return len(given) == len(wanted) and all(size in (None, one) for one, size in zip(given, wanted, strict=True))
