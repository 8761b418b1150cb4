"""A runner's side of the shared memory: map what gateways send, find tensors in it, place answers, show the board."""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.runners import BOARD_BYTES, Part, aligned
from app.domain.tensors import DType, TensorSpec

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def map_segment(descriptor: int, size_bytes: int) -> mmap.mmap:
    """Map a segment and close its descriptor; the mapping lives as long as something refers to it."""
    try:
        return mmap.mmap(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def new_segment(size_bytes: int) -> int:
    """Make anonymous memory whose size is sealed; return its descriptor."""
    descriptor = os.memfd_create("octet-outputs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


class Board:
    """The memory in which every gateway sees how many rows wait here and how many a second are answered."""

    def __init__(self) -> None:
        self.descriptor = new_segment(BOARD_BYTES)
        self._map = map_segment(os.dup(self.descriptor), BOARD_BYTES)

    def show(self, *, rows: int, rows_per_second: float) -> None:
        """Write both numbers."""
        struct.pack_into("<qd", self._map, 0, rows, rows_per_second)


def mark_begun(segment: mmap.mmap) -> None:
    """Note in the segment that its request is computed now: if this process dies, the request is a suspect."""
    segment[0] = 1


def storage(dtype: DType) -> np.dtype[Any]:
    """Return the NumPy type a tensor lies in; bfloat16, which NumPy lacks, lies as uint16."""
    return np.dtype(np.uint16) if dtype is DType.BFLOAT16 else np.dtype(str(dtype))


def view(segment: mmap.mmap, part: Part) -> npt.NDArray[Any]:
    """Return the tensor in place, without a copy."""
    return np.ndarray(part.shape, dtype=storage(part.dtype), buffer=segment, offset=part.offset)


def lay_out(
    arrays: Mapping[str, npt.NDArray[Any]], specs: Iterable[TensorSpec], *, start: int
) -> tuple[tuple[Part, ...], int]:
    """Give every output a place from byte `start` on; return the places and where they end."""
    parts, end = [], start
    for spec in specs:
        array, offset = arrays[spec.name], aligned(end)
        parts.append(Part(name=spec.name, dtype=spec.dtype, shape=array.shape, offset=offset))
        end = offset + array.size * storage(spec.dtype).itemsize
    return tuple(parts), end


def write(segment: mmap.mmap, parts: Iterable[Part], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Copy every array to its place."""
    for part in parts:
        np.copyto(view(segment, part), arrays[part.name])
