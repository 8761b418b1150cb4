"""Which rows are which: a hash of every row as it was sent, and its class. Decodes no image."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workers.data.datasets import open_dataset
from workers.data.rows import Row
from workers.stage_records.common import Progress, RowSource
from workers.stage_records.training import OverlapResult, OverlapSpec

ROWS_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    Attributes:
        first: by hash, the first row that has it.
        repeated: rows that equal an earlier one.
        classes: labels seen, where a row has one integer.
    """

    rows: int
    first: dict[bytes, int]
    repeated: list[int]
    classes: frozenset[int]


def overlap(spec: OverlapSpec, scratch: Path, progress: Progress) -> OverlapResult:
    """Count the evaluation rows that equal one that trains."""
    progress(0.0, "looking for training rows among those that score")
    training = identify(spec.training, scratch=scratch)
    progress(0.5, "looking for training rows among those that score")
    rows = shared(training, identify(spec.evaluation, scratch=scratch))
    return OverlapResult(count=len(rows), rows=tuple(rows[:ROWS_NAMED]))


def shared(one: Identity, evaluation: Identity) -> list[int]:
    """Return the evaluation rows that equal one of other rows by what is in them, ascending."""
    return sorted(row for digest, row in evaluation.first.items() if digest in one.first)


def identify(source: RowSource, *, scratch: Path) -> Identity:
    """Hash every row of a source: its arrays, or the encoded image. 16 bytes a row are kept."""
    dataset = open_dataset(scratch / source.path, format=source.format)
    first: dict[bytes, int] = {}
    repeated: list[int] = []
    classes: set[int] = set()
    for row in dataset.read(source.rows):
        if first.setdefault(_digest(row), row.number) != row.number:
            repeated.append(row.number)
        if row.label is not None and np.ndim(row.label) == 0 and np.asarray(row.label).dtype.kind in "iu":
            classes.add(int(row.label))
    return Identity(rows=len(source.rows), first=first, repeated=repeated, classes=frozenset(classes))


def _digest(row: Row) -> bytes:
    digest = hashlib.blake2b(row.image or b"", digest_size=16)
    for name, array in sorted(row.arrays.items()):
        digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
