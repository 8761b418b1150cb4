"""Rows with what they should be answered, as tensors: for the steps, and for looks at the held-out rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.domain.recipes import Qat
from app.domain.tensors import Signature
from workers.training.augmentation import augment, image_axes, is_asked
from workers.training.labels import Labels, labels_of
from workers.training.losses import Targets
from workers.training.rows import AT_ONCE, Arrays, Rows, picked
from workers.training.teacher import Answers, Teacher

Batch = tuple[dict[str, Tensor], Targets]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """
    Attributes:
        teacher: answers augmented rows; `answers` are to the rows as they are. None where nobody distils.
        image_axes: height and width, where rows are augmented.
        typical: of `Targets`, by name.
    """

    rows: Rows
    recipe: Qat
    labels: Labels | None
    teacher: Teacher | None
    answers: Answers | None
    image_axes: tuple[int, int] | None
    typical: Mapping[str, float] = field(default_factory=dict)

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
        labels = self.labels.take(places) if self.labels is not None else None
        return _tensors(inputs), Targets(teacher=_tensors(answers), labels=labels, typical=self.typical)


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
        typical=_typical(answers, rows),
    )


def _typical(answers: Answers | None, rows: Rows) -> dict[str, float]:
    """Return the energy of the first rows' answers: the mean of their squares, by name."""
    if answers is None:
        return {}
    first = answers.take(np.arange(min(AT_ONCE, len(rows))))
    return {name: float(np.square(array, dtype=np.float64).mean()) for name, array in first.items()}


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
