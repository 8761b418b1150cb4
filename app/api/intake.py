"""What a gateway process takes in: how large a body may be, how long it may take, how much is held at once."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request

from app.api.http_protocol import exchange_of
from app.domain.errors import QueueFull, RequestInvalid, UploadTooLarge


class Intake:
    """Bounds how many bytes of predictions a process holds at once."""

    def __init__(self, *, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0

    @contextmanager
    def held(self) -> Iterator["Held"]:
        """Count one request's bytes until the block ends."""
        held = Held(self._take)
        try:
            yield held
        finally:
            self._held_bytes -= held.size_bytes

    def _take(self, count: int) -> None:
        if self._held_bytes + count > self._most_bytes:
            raise QueueFull(
                f"The predictions under way hold {self._most_bytes} bytes, the limit of a gateway process: try again "
                "soon, or raise OCTET_MAX_PREDICT_BYTES_IN_FLIGHT."
            )
        self._held_bytes += count


class Held:
    """The bytes of one request.

    Attributes:
        room: memory into which the body may be read; None to read it into memory of its own.
    """

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self.size_bytes = 0
        self.room: memoryview | None = None

    def add(self, count: int) -> None:
        """Count more bytes.

        Raises:
            QueueFull: the process holds too many.
        """
        self._take(count)
        self.size_bytes += count


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How much of a body is read.

    Attributes:
        most_bytes: how long it may be.
        advice: what to do about a body that is longer.
        seconds: how long the client may take to send it.
    """

    most_bytes: int
    advice: str
    seconds: float


async def read_bounded(
    request: Request, bound: Bound, *, count: Callable[[int], None] | None = None, into: memoryview | None = None
) -> bytes | memoryview:
    """Read a body whole.

    Args:
        count: is told how many bytes came, as they come, and may refuse them.
        into: memory where the body goes if its length is announced and it fits; then what is returned is a part of it.

    Raises:
        UploadTooLarge: it is longer than the bound.
        RequestInvalid: it did not come in time.
    """
    if content_length(request) > bound.most_bytes:
        raise _too_large(bound)
    try:
        async with asyncio.timeout(bound.seconds):
            if into is not None and 0 < content_length(request) <= len(into):
                return await _read_into(request, into, count=count)
            return await _read(request, bound, count=count)
    except TimeoutError as error:
        raise RequestInvalid(
            f"The body did not come within {bound.seconds:g} s, the limit: send it faster, or raise "
            "OCTET_BODY_TIMEOUT_SECONDS."
        ) from error


async def _read(request: Request, bound: Bound, *, count: Callable[[int], None] | None) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > bound.most_bytes:
            raise _too_large(bound)
        if count is not None:
            count(len(chunk))
        body += chunk
    return bytes(body)


async def _read_into(request: Request, memory: memoryview, *, count: Callable[[int], None] | None) -> memoryview:
    """Read a body of announced length into memory, past the parser where the server can."""
    length, size = content_length(request), 0
    if count is not None:
        count(length)
    exchange = exchange_of(request.scope)
    if exchange is None:
        async for chunk in request.stream():
            memory[size : size + len(chunk)] = chunk
            size += len(chunk)
        return memory[:size]
    exchange.read_into(memory[:length])
    try:
        async for _ in request.stream():
            pass
    finally:
        exchange.forget_memory()
    return memory[: exchange.came_bytes]


def _too_large(bound: Bound) -> UploadTooLarge:
    return UploadTooLarge(f"The body is larger than {bound.most_bytes} bytes, the limit: {bound.advice}.")


def content_length(request: Request) -> int:
    """Return how many bytes the client announces, 0 if it does not say."""
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isdecimal() else 0
