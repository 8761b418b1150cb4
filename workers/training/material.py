"""Rows with what they should be answered, as tensors: for the steps, and for looks at the held-out rows."""

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
from workers.training.augmentation import augment, image_axes, is_asked
from workers.training.losses import IGNORED, Targets
from workers.training.rows import Arrays, Rows, picked
from workers.training.teacher import Answers, Teacher

Batch = tuple[dict[str, Tensor], Targets]

_LEAST_CLASSES = 2
_VOID = 255
"""What maps of classes say of a place that counts for nothing, where the model tells fewer classes apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """
    Attributes:
        teacher: answers augmented rows; `answers` are to the rows as they are. None where nobody distils.
        image_axes: height and width, where rows are augmented.
    """

    rows: Rows
    recipe: Qat
    labels: Tensor | None
    teacher: Teacher | None
    answers: Answers | None
    image_axes: tuple[int, int] | None

    def step(self, step: int, *, rank: int, size: int) -> Batch:
        """Return one process' part of a step's batch."""
        places = picked(len(self.rows), batch_size=self.recipe.batch_size, seed=self.recipe.seed, step=step)
        if self.image_axes is None:
            return self._plain(places[rank::size])
        images = {
            name: augment(array[places], self.recipe, axes=self.image_axes, step=step)[rank::size]
            for name, array in self.rows.inputs.items()
        }
        inputs = self.rows.as_inputs(images)
        answers = self.teacher.answer(inputs) if self.teacher is not None else {}
        return self._batch(inputs, answers, places[rank::size])

    def all(self, *, rank: int, size: int) -> Iterator[Batch]:
        """Yield one process' part of all rows, as they are."""
        for number, places in enumerate(self.rows.in_turn()):
            if number % size == rank:
                yield self._plain(places)

    def first(self, count: int) -> Batch:
        """Return the first rows."""
        return self._plain(np.arange(min(count, len(self.rows))))

    def _plain(self, places: NDArray[np.int64]) -> Batch:
        return self._batch(self.rows.take(places), self.answers.take(places) if self.answers else {}, places)

    def _batch(self, inputs: Arrays, answers: Arrays, places: NDArray[np.int64]) -> Batch:
        labels = self.labels[torch.from_numpy(places)] if self.labels is not None else None
        return _tensors(inputs), Targets(teacher=_tensors(answers), labels=labels)


def material_of(
    rows: Rows, recipe: Qat, signature: Signature, *, teacher: Teacher | None, answers: Answers | None, trains: bool
) -> Material:
    """Put rows and answers together.

    Args:
        trains: rows that train are augmented where the recipe says so; rows that score never are.

    Raises:
        DatasetUnfit: labels that the loss cannot use, or rows that are no images where images are augmented.
    """
    augmented = trains and is_asked(recipe)
    return Material(
        rows=rows,
        recipe=recipe,
        labels=labels_of(rows, recipe, signature, trains=trains) if recipe.uses_labels else None,
        teacher=teacher if augmented else None,
        answers=answers,
        image_axes=image_axes(signature) if augmented else None,
    )


def labels_of(rows: Rows, recipe: Qat, signature: Signature, *, trains: bool) -> Tensor:
    """Check the labels of rows and return them.

    Raises:
        DatasetUnfit: there are none, or classes that the model does not have, or one class only.
    """
    if rows.labels is None:
        raise DatasetUnfit(
            f"The loss {recipe.loss!r} needs labels, and the training rows have none: take 'distillation'."
        )
    labels, output = np.asarray(rows.labels), signature.outputs[0]
    if recipe.loss == "mse":
        return _values(labels, output.shape[1:])
    if labels.dtype.kind not in "iu":
        raise DatasetUnfit("The loss 'cross_entropy' needs classes as labels, and these are real numbers: take 'mse'.")
    classes = output.shape[1] if len(output.shape) > 1 else None
    if classes is None or not _fit(labels.shape[1:], output.shape[2:]):
        raise DatasetUnfit(
            f"The labels do not fit the model's first output, {output.describe()}: cross_entropy takes one class for "
            "each row, or a map of classes."
        )
    return _classes(labels.astype(np.int64), int(classes), rows=rows, trains=trains)


def _classes(labels: NDArray[np.int64], classes: int, *, rows: Rows, trains: bool) -> Tensor:
    if labels.ndim > 1:
        labels = np.where((labels < 0) | ((labels == _VOID) & (classes <= _VOID)), IGNORED, labels)
    wrong = (labels >= classes) | ((labels < 0) & (labels != IGNORED if labels.ndim > 1 else True))
    if wrong.any():
        at = int(np.argwhere(wrong)[0][0])
        raise DatasetUnfit(
            f"Row {rows.numbers[at]} is labelled {int(labels[wrong][0])}, but the model tells {classes} classes apart, "
            f"0 to {classes - 1}: mend the labels."
        )
    if trains and len(np.unique(labels[labels != IGNORED])) < _LEAST_CLASSES:
        raise DatasetUnfit(
            "All training rows have one class, from which nothing can be told apart: send rows of others."
        )
    return torch.from_numpy(labels)


def _fit(given: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether labels have a place for every answer; a size that only rows tell fits any."""
    return len(given) == len(wanted) and all(size in (None, one) for one, size in zip(given, wanted, strict=True))


def _values(labels: NDArray[Any], shape: tuple[int | None, ...]) -> Tensor:
    wanted = [size for size in shape if size != 1]
    given = [size for size in labels.shape[1:] if size != 1]
    if len(wanted) != len(given) or any(a is not None and a != b for a, b in zip(wanted, given, strict=True)):
        raise DatasetUnfit(
            f"The labels are {list(labels.shape[1:])} a row, but the model's first output is {list(shape)}: send "
            "values of that shape."
        )
    values = labels.astype(np.float32)
    if not np.isfinite(values).all():
        raise DatasetUnfit("Some labels are not finite numbers: mend them.")
    return torch.from_numpy(values)


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
