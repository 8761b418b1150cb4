"""One batch of answers as metrics look at it: every form's outputs with the rows first, and the labels beside them."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import DatasetUnfit, ToolchainFailed
from app.domain.tensors import Signature, TensorSpec
from workers.measure.fidelity import Closeness, closeness, divergence

Array = NDArray[Any]
Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Found = TypeVar("Found")

IGNORED = 255
"""In a class map: no class, unless the model tells more classes apart."""
_CLASS_DTYPES = ("int32", "int64")
_SCORES_AXES = 2


class Answers:
    """One batch.

    Args:
        outputs: per form its outputs, each with the rows first; the first form is float32.
        labels: as in `Batch`.
        rows: their numbers in the dataset.
    """

    def __init__(self, outputs: Sequence[Sequence[Array]], *, labels: Array | None, rows: Sequence[int]) -> None:
        self.outputs = outputs
        self.labels = labels
        self.rows = tuple(rows)

    @property
    def first(self) -> list[Array]:
        """Every form's first output: what labels are about."""
        return [form[0] for form in self.outputs]

    @cached_property
    def has_floats(self) -> bool:
        """Whether any output is made of numbers, not of classes: only such a one can be near or far."""
        return any(not _is_ids(output) for output in self.outputs[0])

    @cached_property
    def scores(self) -> list[Array] | None:
        """Per form the score of every class, float[rows, classes]; None if the first output is none."""
        output = self.first[0]
        fits = output.ndim == _SCORES_AXES and output.shape[1] > 1 and output.dtype.kind == "f"
        return self.first if fits else None

    @cached_property
    def answered(self) -> NDArray[np.bool_]:
        """Which rows float32 answers, bool[rows]: no NaN in the first output, and not infinities alone."""
        output = self.first[0].reshape(len(self.rows), -1)
        if output.dtype.kind != "f" or output.size == 0:
            return np.ones(len(self.rows), np.bool_)
        finite, nan = np.isfinite(output), np.isnan(output)
        found: NDArray[np.bool_] = np.logical_and(finite.any(axis=1), np.logical_not(nan.any(axis=1)))
        return found

    @cached_property
    def classes(self) -> list[Ids] | None:
        """Per form the class it answers, int64[rows]; None if the first output says none."""
        if self.scores is not None:
            return [scores.argmax(axis=1) for scores in self.scores]
        output = self.first[0]
        if _is_ids(output) and output.size == len(self.rows):
            return [ids.reshape(-1).astype(np.int64) for ids in self.first]
        return None

    @cached_property
    def class_labels(self) -> Ids | None:
        """One label per row, int64[rows]; None if the labels are of another kind.

        Raises:
            DatasetUnfit: a label that is no class of the model.
        """
        labels = self.labels
        if labels is None or labels.ndim != 1 or labels.dtype.kind == "f":
            return None
        if self.scores is not None and labels.max() >= self.scores[0].shape[1]:
            classes = self.scores[0].shape[1]
            raise DatasetUnfit(
                f"Row {self.rows[int(labels.argmax())]} is labelled {labels.max()}, but the model tells {classes} "
                f"classes apart: use labels 0 to {classes - 1}."
            )
        return labels.astype(np.int64)

    @cached_property
    def map_labels(self) -> Ids | None:
        """The maps of classes, int64[rows, pixels], -1 where to be ignored; None if they do not fit the first output.

        Raises:
            DatasetUnfit: a label that is no class of the model.
        """
        labels = self.labels
        if labels is None or labels.ndim == 1 or labels.dtype.kind == "f" or not self._fits_maps(labels):
            return None
        maps = labels.reshape(len(labels), -1).astype(np.int64)
        axis = self._class_axis
        known = None if axis is None else self.first[0].shape[axis]
        if known is None or known <= IGNORED:
            maps[maps == IGNORED] = -1
        maps[maps < 0] = -1
        if known is not None and maps.max() >= known:
            row = self.rows[int(maps.max(axis=1).argmax())]
            raise DatasetUnfit(
                f"The map of row {row} has class {maps.max()}, but the model tells {known} classes apart: use "
                f"0 to {known - 1}, and {IGNORED} or a negative value for what is to be ignored."
            )
        return maps

    @cached_property
    def maps(self) -> list[Ids] | None:
        """Per form the class of every pixel, int64[rows, pixels]; None if the first output says none.

        Integers are classes; floats are scores of classes only where labels say so: an image has channels too.
        """
        output, axis = self.first[0], self._class_axis
        if axis is not None and self.map_labels is not None:
            return [scores.argmax(axis=axis).reshape(len(self.rows), -1) for scores in self.first]
        if self.map_labels is not None or (_is_ids(output) and self.classes is None):
            return [ids.reshape(len(self.rows), -1).astype(np.int64) for ids in self.first]
        return None

    @cached_property
    def targets(self) -> Floats | None:
        """The values to be met, float64[rows, elements]; None if the labels do not fit the first output."""
        labels = self.labels
        if labels is None or labels.dtype.kind != "f" or labels.size != self.first[0].size:
            return None
        return labels.reshape(len(labels), -1).astype(np.float64)

    @cached_property
    def errors(self) -> list[Floats]:
        """Per form, output minus target, float64[rows, elements], 0 where float32 is not finite."""
        targets = fitting(self.targets)
        finite = self.finite_targets
        values = [output.reshape(len(self.rows), -1).astype(np.float64) for output in self.first]
        return [np.where(finite, form - targets, 0) for form in values]

    @cached_property
    def finite_targets(self) -> NDArray[np.bool_]:
        """Which elements of the first output are finite in float32, bool[rows, elements]."""
        found: NDArray[np.bool_] = np.isfinite(self.first[0].reshape(len(self.rows), -1))
        return found

    @cached_property
    def closeness(self) -> list[Closeness]:
        """Per form but float32: how near it is."""
        chosen = [number for number, output in enumerate(self.outputs[0]) if not _is_ids(output)]
        kept = chosen or range(len(self.outputs[0]))
        reference = [self._flat(0, number) for number in kept]
        return [
            closeness(reference, [self._flat(form, number) for number in kept]) for form in range(1, len(self.outputs))
        ]

    @cached_property
    def divergences(self) -> list[Floats]:
        """Per form but float32: KL divergence of its class probabilities, float64[rows]; empty without class scores."""
        scores = [form.astype(np.float64) for form in self.scores or ()]
        return [divergence(scores[0], form) for form in scores[1:]]

    def _flat(self, form: int, output: int) -> Floats:
        return self.outputs[form][output].reshape(len(self.rows), -1).astype(np.float64)

    @cached_property
    def _class_axis(self) -> int | None:
        """Which axis of the first output counts classes, by the shape of the labels; None if none does."""
        output, labels = self.first[0], self.labels
        if labels is None or output.dtype.kind != "f" or output.ndim != labels.ndim + 1:
            return None
        if output.shape[1] > 1 and output.shape[:1] + output.shape[2:] == labels.shape:
            return 1
        return output.ndim - 1 if output.shape[-1] > 1 and output.shape[:-1] == labels.shape else None

    def _fits_maps(self, labels: Array) -> bool:
        output = self.first[0]
        return self._class_axis is not None or (output.dtype.kind in "iub" and output.size == labels.size)


def fitting(found: Found | None) -> Found:
    """Return what the first batch had and this one must have.

    Raises:
        DatasetUnfit: it has not, because rows differ in shape.
    """
    if found is None:
        raise DatasetUnfit(
            "The model's first output changes its shape from row to row, so labels and answers cannot be compared: "
            "bring the rows to one size."
        )
    return found


def rows_first(outputs: Sequence[Array], signature: Signature, *, count: int) -> list[Array]:
    """Bring the rows of every output of one form to the front; an output of a single row may lack their axis.

    Raises:
        ToolchainFailed: an output has another number of rows than was asked for.
    """
    return [_rows_first(output, spec, count=count) for spec, output in zip(signature.outputs, outputs, strict=True)]


def _rows_first(output: Array, spec: TensorSpec, *, count: int) -> Array:
    moved = np.moveaxis(output, spec.batch_axis or 0, 0) if output.ndim else output[np.newaxis]
    if len(moved) == count:
        return moved
    if count == 1:
        return output[np.newaxis]
    raise ToolchainFailed(
        f"Output {spec.name!r} has {len(moved)} rows for {count} rows of input: export the model with one batch axis "
        "for inputs and outputs."
    )


def _is_ids(output: Array) -> bool:
    return output.dtype.name in _CLASS_DTYPES
