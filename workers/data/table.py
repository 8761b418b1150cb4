"""Datasets of named arrays, whatever the file format: columns that are read side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.domain.datasets import ArraySpec, DatasetFormat
from app.domain.errors import DatasetUnfit
from app.domain.metrics import Labels
from app.domain.tensors import DType
from workers.data.rows import LABELS, Row

BLOCK_BYTES = 1 << 20
LARGEST_ROW_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an array declares about itself: dtype, and its whole shape, rows first."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    @property
    def block_rows(self) -> int:
        """How many rows to read at once: about a mebibyte, at least one."""
        return max(1, BLOCK_BYTES // max(1, self.row_bytes))

    def spec(self) -> ArraySpec:
        return ArraySpec(name=self.name, dtype=self.dtype.name, row_shape=self.shape[1:])


class Column(Protocol):
    """One array of a file."""

    @property
    def header(self) -> Header: ...

    def read(self, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield the rows with these ascending numbers, without the row axis."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Arrays of equal length under names, with or without labels. Build it with `of`."""

    format: DatasetFormat
    columns: tuple[Column, ...]
    label_column: Column | None
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, columns: Mapping[str, Column], *, format: DatasetFormat) -> "Table":  # noqa: A002
        """Check what the columns declare, and put the labels apart.

        Raises:
            DatasetUnfit: no array, no row, an unusable dtype, arrays of different length.
        """
        for column in columns.values():
            _check_header(column.header)
        inputs = tuple(column for name, column in sorted(columns.items()) if name != LABELS)
        if not inputs:
            raise DatasetUnfit("The dataset holds no array: save one array per model input, under the input's name.")
        labels = columns.get(LABELS)
        _check_lengths([column.header for column in columns.values()])
        return cls(format=format, columns=inputs, label_column=labels)

    @property
    def rows(self) -> int:
        return self.columns[0].header.shape[0]

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        return tuple(column.header.spec() for column in self.columns)

    @property
    def labelled(self) -> bool:
        return self.label_column is not None

    @property
    def labels(self) -> ArraySpec | None:
        return None if self.label_column is None else self.label_column.header.spec()

    def name_of(self, number: int) -> str:
        return f"Row {number}"

    def read(self, numbers: Sequence[int]) -> Iterator[Row]:
        """Yield the rows with these ascending numbers, all columns side by side."""
        names = [column.header.name for column in self.columns]
        streams = [column.read(numbers) for column in self.columns]
        labels = self.label_column.read(numbers) if self.label_column is not None else (None for _ in numbers)
        kind = self.labels.label_kind if self.labels is not None else "none"
        for number, label, *arrays in zip(numbers, labels, *streams, strict=True):
            yield Row(
                number=number,
                arrays=dict(zip(names, arrays, strict=True)),
                image=None,
                label=None if label is None else _label(label, kind=kind),
            )


def _label(label: NDArray[Any], *, kind: Labels) -> int | NDArray[Any]:
    if kind == "class":
        return int(label.item())
    # NumPy's own floats alone have the arithmetic that metrics need
    return label.astype(np.float32) if label.dtype.kind == "V" else label


def _check_header(header: Header) -> None:
    if header.dtype.hasobject:
        raise DatasetUnfit(f"Array {header.name!r} holds Python objects: save it with a numeric dtype.")
    if header.dtype.name not in set(DType):
        raise DatasetUnfit(f"Array {header.name!r} has dtype {header.dtype}: use one of {', '.join(DType)}.")
    if not header.shape:
        raise DatasetUnfit(f"Array {header.name!r} has no axes: its first axis must count the rows.")
    if header.shape[0] == 0:
        raise DatasetUnfit(f"Array {header.name!r} has no rows: send at least one.")
    if header.row_bytes == 0:
        raise DatasetUnfit(f"Rows of array {header.name!r} have no elements: its shape is {list(header.shape)}.")
    if header.row_bytes > LARGEST_ROW_BYTES:
        raise DatasetUnfit(
            f"One row of array {header.name!r} takes {header.row_bytes} bytes, the limit is {LARGEST_ROW_BYTES}: "
            "the first axis must count the rows."
        )


def _check_lengths(headers: Sequence[Header]) -> None:
    if len({header.shape[0] for header in headers}) > 1:
        lengths = ", ".join(f"{header.name!r} has {header.shape[0]}" for header in headers)
        raise DatasetUnfit(f"The arrays differ in their number of rows: {lengths}; send one row of each per sample.")
