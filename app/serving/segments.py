"""Shared memory without names: segments that a gateway and a variant's runners map, reused from request to request."""

import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.errors import QueueFull
from app.domain.runners import ALIGNMENT, BOARD_BYTES, SEGMENT_HEADER_BYTES, Part
from app.serving.requests import storage

SMALLEST_BYTES = 2**16
MOST_IDLE = 32
MOST_IDLE_BYTES = 2**27
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Segment:
    """One mapping; `number` names it in messages. Who took it and every runner that works on it are its users.

    Attributes:
        spoilt: whether a runner that answers no more may still write here: no other request gets it.
    """

    def __init__(self, descriptor: int, *, number: int, size_bytes: int) -> None:
        self.number = number
        self.size_bytes = size_bytes
        self.descriptor = descriptor
        self.users = 0
        self.spoilt = False
        self._map = mmap.mmap(descriptor, size_bytes)
        self.memory = memoryview(self._map)
        self._address = np.frombuffer(self._map, np.uint8).__array_interface__["data"][0]

    @property
    def begun(self) -> bool:
        """Whether a runner has begun to compute what lies here."""
        return self.memory[0] != 0

    def forget_begun(self) -> None:
        """Make ready to be sent, once more or for another request."""
        self.memory[0] = 0

    def offset_of(self, array: npt.NDArray[Any], *, alignment: int = ALIGNMENT) -> int | None:
        """Return where in this segment the array lies, if all of it does and begins at a multiple of `alignment`."""
        offset = array.__array_interface__["data"][0] - self._address
        inside = offset >= SEGMENT_HEADER_BYTES and offset + array.nbytes <= self.size_bytes
        return offset if inside and offset % alignment == 0 and array.flags.c_contiguous else None

    def view(self, part: Part) -> npt.NDArray[Any]:
        """Return the tensor in place.

        Raises:
            ValueError, TypeError: it does not lie inside the segment.
        """
        return np.ndarray(part.shape, dtype=storage(part.dtype), buffer=self._map, offset=part.offset)

    def place(self, part: Part, array: npt.NDArray[Any]) -> None:
        """Copy an array to its place."""
        np.copyto(self.view(part), array)

    def read(self, parts: tuple[Part, ...]) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the tensors, which outlive the segment."""
        return {part.name: self.view(part).copy() for part in parts}

    def close(self) -> None:
        """Close the descriptor; the memory goes when nobody refers to it any more."""
        os.close(self.descriptor)


class Board:
    """What a runner shows every gateway: rows that wait there, and rows it answers in a second."""

    def __init__(self, descriptor: int) -> None:
        try:
            self._map = mmap.mmap(descriptor, BOARD_BYTES, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)

    def wait_seconds(self) -> float:
        """Return how long a request that comes now will wait; 0 while the runner does not know its own rate."""
        rows, rate = struct.unpack_from("<qd", self._map)
        return float(rows / rate) if rate > 0 else 0.0

    def close(self) -> None:
        """Give the memory back now: a mapping holds a descriptor of its own."""
        self._map.close()


def create(size_bytes: int) -> int:
    """Return the descriptor of new anonymous memory. Its size is sealed: no peer can cut it short under a reader."""
    descriptor = os.memfd_create("octet-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
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
    """The segments of one variant: what was written for its runners is never seen by another's.

    Args:
        dropped: called with a segment that is kept no longer.

    Attributes:
        size_bytes: of all its segments, lent and idle.
        keeps: whether a segment that comes back is kept for the next request.
    """

    def __init__(self, *, dropped: Callable[[Segment], None]) -> None:
        self.size_bytes = 0
        self.keeps = True
        self._idle: list[Segment] = []
        self._idle_bytes = 0
        self._made = 0
        self._dropped = dropped

    def take(self, size_bytes: int) -> Segment:
        """Return a segment of at least `size_bytes`, with one user.

        Raises:
            QueueFull: there is neither an idle one nor a descriptor or memory for a new one.
        """
        fitting = [segment for segment in self._idle if segment.size_bytes >= size_bytes]
        if fitting:
            segment = min(fitting, key=lambda idle: idle.size_bytes)
            self._idle.remove(segment)
            self._idle_bytes -= segment.size_bytes
        else:
            segment = self._make(max(SMALLEST_BYTES, 1 << (size_bytes - 1).bit_length()))
        segment.users = 1
        segment.forget_begun()
        return segment

    def leave(self, segment: Segment) -> None:
        """Note that one user needs it no more; without any it is kept for the next request, or dropped."""
        segment.users -= 1
        if segment.users:
            return
        self._idle.append(segment)
        self._idle_bytes += segment.size_bytes
        if segment.spoilt:
            self._drop(self._idle.pop())
        if not self.keeps:
            self.trim()
        while len(self._idle) > MOST_IDLE or self._idle_bytes > MOST_IDLE_BYTES:
            largest = max(self._idle, key=lambda idle: idle.size_bytes)
            self._idle.remove(largest)
            self._drop(largest)

    def close(self) -> None:
        """Drop everything that is idle, and what is still lent as soon as it comes back."""
        self.keeps = False
        self.trim()

    def trim(self) -> None:
        """Drop what is idle."""
        while self._idle:
            self._drop(self._idle.pop())

    def _make(self, size_bytes: int) -> Segment:
        try:
            descriptor = create(size_bytes)
            try:
                segment = Segment(descriptor, number=self._made + 1, size_bytes=size_bytes)
            except OSError:
                os.close(descriptor)
                raise
        except OSError as error:
            raise QueueFull(
                f"This gateway has no room for a request of {size_bytes:,} bytes ({error}): send fewer requests at a "
                "time, or let its process open more files and have more memory.",
                retry_after_seconds=1,
            ) from error
        self._made += 1
        self.size_bytes += size_bytes
        return segment

    def _drop(self, segment: Segment) -> None:
        self._idle_bytes -= segment.size_bytes
        self.size_bytes -= segment.size_bytes
        self._dropped(segment)
        segment.close()
