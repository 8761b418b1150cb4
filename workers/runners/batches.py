"""Rows of several requests as one array, and one answer as the rows of each. Pure NumPy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]
Axes = Mapping[str, int]
"""The axis of rows of every tensor, by its name."""


class Joiner:
    """Joins requests in memory that it keeps, for fresh memory costs more than the copy. Used by one thread."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._kept: dict[str, npt.NDArray[Any]] = {}

    def join(self, requests: Sequence[Arrays]) -> Arrays:
        """Return the requests' arrays one after the other along their axis of rows; valid until the next call.

        Requests must have the same names, dtypes and, the axis of rows aside, shapes.
        """
        if len(requests) == 1:
            return requests[0]
        return {name: self._joined(name, [arrays[name] for arrays in requests]) for name in requests[0]}

    def _joined(self, name: str, arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        axis, first = self._axes[name], arrays[0]
        shape = list(first.shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        kept = self._kept.get(name)
        if kept is None or kept.shape != tuple(shape) or kept.dtype != first.dtype:
            kept = self._kept[name] = np.empty(shape, first.dtype)
        return np.concatenate(arrays, axis=axis, out=kept)


def split(outputs: Arrays, rows: Sequence[int], axes: Axes) -> list[dict[str, npt.NDArray[Any]]]:
    """Return each request's share of an answer, as views.

    Args:
        rows: of each request, in the order in which they were joined.

    Raises:
        ValueError: an output has not as many rows as the requests together.
    """
    total, ends = sum(rows), np.cumsum(rows)
    for name, array in outputs.items():
        if array.shape[axes[name]] != total:
            raise ValueError(f"Output {name!r} has {array.shape[axes[name]]} rows for a batch of {total}.")
    shares: list[dict[str, npt.NDArray[Any]]] = []
    for count, end in zip(rows, ends, strict=True):
        place = slice(int(end) - count, int(end))
        shares.append({name: _rows(array, axes[name], place) for name, array in outputs.items()})
    return shares


def _rows(array: npt.NDArray[Any], axis: int, place: slice) -> npt.NDArray[Any]:
    return array[(slice(None),) * axis + (place,)]
