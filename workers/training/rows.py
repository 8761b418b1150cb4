"""Rows in files that are read at random: what every step takes of them is decided by the seed and the step alone."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import DatasetUnfit
from app.domain.tensors import Signature
from workers.data.batches import batches
from workers.stage_records.common import RowSource

Arrays = dict[str, NDArray[Any]]

AT_ONCE = 64
"""Rows that are read, or answered by a teacher, together: always as many, so that answers are the same to the bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows on disk, the batch axis first whatever the model's is.

    Attributes:
        inputs: by name, [rows, ...].
        axes: by name, where the model has the batch axis.
        labels: [rows, ...]; None without. Of more than one number a row they lie in a file, too.
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
        OSError: the disk has no room for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    axes = {spec.name: spec.batch_axis or 0 for spec in signature.inputs}
    files: dict[str, np.memmap[Any, Any]] = {}
    labels: NDArray[Any] | None = None
    done, count = 0, len(source.rows)
    for batch in batches(source, signature, scratch=scratch, size=AT_ONCE):
        for number, (name, array) in enumerate(batch.inputs.items()):
            first = np.moveaxis(array, axes[name], 0)
            if name not in files:
                files[name] = mapped(folder / f"{number}.npy", first, rows=count)
            if files[name].shape[1:] != first.shape[1:]:
                raise DatasetUnfit(f"Rows for input {name!r} differ in shape: training needs them all alike.")
            files[name][done : done + len(first)] = first
        if batch.labels is not None:
            if labels is None:
                labels = _room_for_labels(folder / "labels.npy", batch.labels, rows=count)
            if labels.shape[1:] != batch.labels.shape[1:]:
                raise DatasetUnfit("The rows' labels differ in shape: training needs them all alike.")
            labels[done : done + len(batch.labels)] = batch.labels
        done += len(batch.rows)
    return Rows(inputs=files, axes=axes, labels=labels, numbers=tuple(source.rows))


def mapped(path: Path, like: NDArray[Any], *, rows: int) -> np.memmap[Any, Any]:
    """Make a file for arrays like the rows of one, and return it as an array.

    Its room is taken at once: where the disk is full only when a page is written to it, the process is killed.

    Raises:
        OSError: the disk has no room for it.
    """
    made = np.lib.format.open_memmap(path, mode="w+", dtype=like.dtype, shape=(rows, *like.shape[1:]))
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return made


def _room_for_labels(path: Path, first: NDArray[Any], *, rows: int) -> NDArray[Any]:
    return mapped(path, first, rows=rows) if first.ndim > 1 else np.zeros(rows, first.dtype)


@lru_cache(maxsize=2)
def order(rows: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order in which an epoch takes the rows, read-only: an epoch's is drawn once."""
    drawn = np.random.default_rng((seed, 0, epoch)).permutation(rows)
    drawn.flags.writeable = False
    return drawn


def picked(rows: int, *, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Return the rows of a step. What an epoch leaves over after its last whole batch waits for the next order."""
    per_epoch = rows // batch_size
    start = (step % per_epoch) * batch_size
    return order(rows, seed=seed, epoch=step // per_epoch)[start : start + batch_size]
