"""Shared memory without names: segments that a gateway and one runner both map, reused from request to request."""

import fcntl
import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.runners import Part, aligned
from app.domain.tensors import TensorSpec
from app.serving.requests import storage
from app.serving.terms import Arrays

SMALLEST_BYTES = 2**16
MOST_IDLE = 16
MOST_IDLE_BYTES = 2**28
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Segment:
    """One mapping. It ends when nothing refers to it any more; `number` names it in messages."""

    def __init__(self, descriptor: int, *, number: int, size_bytes: int) -> None:
        self.number = number
        self.size_bytes = size_bytes
        self._map = mmap.mmap(descriptor, size_bytes)

    def view(self, part: Part) -> npt.NDArray[Any]:
        """Return the tensor in place.

        Raises:
            ValueError, TypeError: it does not lie inside the segment.
        """
        return np.ndarray(part.shape, dtype=storage(part.dtype), buffer=self._map, offset=part.offset)

    def read(self, parts: tuple[Part, ...]) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the tensors, which outlive the segment."""
        return {part.name: self.view(part).copy() for part in parts}

    def write(self, data: bytes, parts: tuple[Part, ...], arrays: Arrays) -> None:
        """Put `data` at the beginning, and every array at its place."""
        self._map[: len(data)] = data
        for part in parts:
            array, place = arrays[part.name], self.view(part)
            np.copyto(place, array.view(place.dtype) if array.dtype.kind == "V" else array)


def lay_out(arrays: Arrays, specs: tuple[TensorSpec, ...]) -> tuple[tuple[Part, ...], int]:
    """Give every array that is there a place in a segment; return the places, and the first byte after them."""
    parts, end = [], 0
    for spec in specs:
        if spec.name in arrays:
            array = arrays[spec.name]
            parts.append(Part(name=spec.name, dtype=spec.dtype, shape=array.shape, offset=end))
            end = aligned(end + array.size * storage(spec.dtype).itemsize)
    return tuple(parts), end


def create(size_bytes: int) -> int:
    """Return the descriptor of new anonymous memory. Its size is sealed: no peer can cut it short under a reader."""
    descriptor = os.memfd_create("octet-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def adopt(descriptor: int, size_bytes: int) -> Segment:
    """Map memory that a runner made, and close the descriptor.

    Raises:
        ValueError: its size is not sealed, or smaller than said: reading it could kill this process.
    """
    try:
        sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        if not sealed or os.fstat(descriptor).st_size < size_bytes:
            raise ValueError("The runner's segment is not sealed, or smaller than it says.")
        return Segment(descriptor, number=-1, size_bytes=size_bytes)
    finally:
        os.close(descriptor)


class SegmentPool:
    """The idle segments of one runner, which knows the same ones by number."""

    def __init__(self) -> None:
        self._idle: list[Segment] = []
        self._made = 0

    def take(self, size_bytes: int) -> tuple[Segment, int | None]:
        """Return a segment of at least `size_bytes`; with it, if it is new, the descriptor to send to the runner."""
        fitting = [segment for segment in self._idle if segment.size_bytes >= size_bytes]
        if fitting:
            best = min(fitting, key=lambda segment: segment.size_bytes)
            self._idle.remove(best)
            return best, None
        size = max(SMALLEST_BYTES, 1 << (size_bytes - 1).bit_length())
        descriptor = create(size)
        self._made += 1
        return Segment(descriptor, number=self._made, size_bytes=size), descriptor

    def give_back(self, segment: Segment) -> list[Segment]:
        """Keep a segment for the next request; return those, the largest first, that are too many to keep."""
        self._idle.append(segment)
        self._idle.sort(key=lambda idle: idle.size_bytes)
        dropped: list[Segment] = []
        while len(self._idle) > MOST_IDLE or sum(idle.size_bytes for idle in self._idle) > MOST_IDLE_BYTES:
            dropped.append(self._idle.pop())
        return dropped
