"""Rows in files that are read at random: what every step takes of them is decided by the seed and the step alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import DatasetUnfit
from app.domain.tensors import Signature
from workers.data.batches import batches
from workers.stages import RowSource

Arrays = dict[str, NDArray[Any]]

AT_ONCE = 64
"""Rows that are read, or answered by a teacher, together: always as many, so that answers are the same to the bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows on disk, the batch axis first whatever the model's is.

    Attributes:
        inputs: by name, [rows, ...].
        axes: by name, where the model has the batch axis.
        labels: [rows, ...]; None without.
        numbers: of the rows, in their dataset.
    """

    inputs: Mapping[str, NDArray[Any]]
    axes: Mapping[str, int]
    labels: NDArray[Any] | None
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, picked: NDArray[np.int64]) -> Arrays:
        """Return some rows as the model takes them."""
        return self.as_inputs({name: array[picked] for name, array in self.inputs.items()})

    def as_inputs(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return rows with the batch axis where the model has it."""
        return {name: np.ascontiguousarray(np.moveaxis(array, 0, self.axes[name])) for name, array in arrays.items()}

    def in_turn(self) -> Iterator[NDArray[np.int64]]:
        """Yield the places of all rows, some at a time."""
        for start in range(0, len(self), AT_ONCE):
            yield np.arange(start, min(start + AT_ONCE, len(self)))


def load(source: RowSource, signature: Signature, *, scratch: Path, folder: Path) -> Rows:
    """Write rows, preprocessed, to files below `folder`, and return them.

    Memory holds one batch; the files take what the rows are as the model's inputs.

    Raises:
        DatasetUnfit: a row that the model does not take, or rows of several shapes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    axes = {spec.name: spec.batch_axis or 0 for spec in signature.inputs}
    files: dict[str, np.memmap[Any, Any]] = {}
    labels: list[NDArray[Any]] = []
    done = 0
    for batch in batches(source, signature, scratch=scratch, size=AT_ONCE):
        for number, (name, array) in enumerate(batch.inputs.items()):
            first = np.moveaxis(array, axes[name], 0)
            if name not in files:
                shape = (len(source.rows), *first.shape[1:])
                path = folder / f"{number}.npy"
                files[name] = np.lib.format.open_memmap(path, mode="w+", dtype=first.dtype, shape=shape)
            if files[name].shape[1:] != first.shape[1:]:
                raise DatasetUnfit(f"Rows for input {name!r} differ in shape: training needs them all alike.")
            files[name][done : done + len(first)] = first
        if batch.labels is not None:
            labels.append(batch.labels)
        done += len(batch.rows)
    return Rows(inputs=files, axes=axes, labels=np.concatenate(labels) if labels else None, numbers=tuple(source.rows))


def order(rows: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order in which an epoch takes the rows."""
    return np.random.default_rng((seed, 0, epoch)).permutation(rows)


def picked(rows: int, *, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Return the rows of a step. What an epoch leaves over after its last whole batch waits for the next order."""
    per_epoch = rows // batch_size
    start = (step % per_epoch) * batch_size
    return order(rows, seed=seed, epoch=step // per_epoch)[start : start + batch_size]
