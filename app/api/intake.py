"""What a gateway process takes in: how large a body may be, how long it may take, how much is held at once."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.api.http_protocol import exchange_of
from app.domain.errors import QueueFull, RequestInvalid, UploadTooLarge

Variant = tuple[str, int, str]
"""A model, its version, and the variant's name."""


class Intake:
    """Bounds how many bytes of predictions a process holds at once, and that one variant's are at most half of these.

    A request whose variant holds no other may take more than half.
    """

    def __init__(self, *, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._share_bytes = most_bytes // 2
        self._held_bytes = 0
        self._of_variant: dict[Variant, int] = {}

    @contextmanager
    def held(self) -> Iterator["Held"]:
        """Count one request's bytes until the block ends, or its answer has gone out."""
        held = Held(self)
        try:
            yield held
        finally:
            if not held.kept:
                held.release()

    def take(self, held: "Held", count: int) -> None:
        """Count more of a request's bytes, or fewer.

        Raises:
            QueueFull: there are too many.
        """
        if count > 0 and self._held_bytes + count > self._most_bytes:
            raise QueueFull(
                f"The predictions under way hold {self._most_bytes} bytes, the limit of a gateway process: try again "
                "soon, or raise OCTET_MAX_PREDICT_BYTES_IN_FLIGHT."
            )
        if held.variant is not None:
            self.book(held.variant, count, own=held.size_bytes)
        self._held_bytes += count

    def give_back(self, held: "Held") -> None:
        """Count none of a request's bytes any more."""
        self._held_bytes -= held.size_bytes
        if held.variant is not None:
            self.book(held.variant, -held.size_bytes, own=held.size_bytes)

    def book(self, variant: Variant, count: int, *, own: int) -> None:
        """Count bytes as a variant's; `own` are those of the same request that are counted so already.

        Raises:
            QueueFull: with those of other requests they are more than its share.
        """
        before = self._of_variant.get(variant, 0)
        after = before + count
        if after > self._share_bytes and before > own and count > 0:
            raise QueueFull(
                f"The predictions of {variant[0]}:{variant[1]}@{variant[2]} under way hold {self._share_bytes} bytes, "
                "half of what a gateway process takes: try again soon, or raise OCTET_MAX_PREDICT_BYTES_IN_FLIGHT."
            )
        if after:
            self._of_variant[variant] = after
        else:
            self._of_variant.pop(variant, None)


class Held:
    """The bytes of one request.

    Attributes:
        room: memory into which the body may be read; None to read it into memory of its own.
        variant: who answers, once that is known.
        kept: whether it is for the answer to release them.
    """

    __slots__ = ("_intake", "kept", "room", "size_bytes", "variant")

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.size_bytes = 0
        self.room: memoryview | None = None
        self.variant: Variant | None = None
        self.kept = False

    def add(self, count: int) -> None:
        """Count more bytes.

        Raises:
            QueueFull: the process holds too many, or too many for the variant.
        """
        self._intake.take(self, count)
        self.size_bytes += count

    def assign(self, variant: Variant) -> None:
        """Count the bytes as those of who answers, from now on.

        Raises:
            QueueFull: it has too many.
        """
        if variant == self.variant:
            return
        self._intake.book(variant, self.size_bytes, own=0)
        if self.variant is not None:
            self._intake.book(self.variant, -self.size_bytes, own=0)
        self.variant = variant

    def keep(self, size_bytes: int) -> None:
        """Count the answer's bytes instead of the request's, until they are released.

        Raises:
            QueueFull: the process holds too many, or too many for the variant.
        """
        self.add(size_bytes - self.size_bytes)
        self.kept = True

    def release(self) -> None:
        """Count nothing any more."""
        self._intake.give_back(self)
        self.size_bytes = 0


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
    exchange = exchange_of(request.scope)
    if exchange is None:
        return await _copy_into(request, memory, count=count)
    exchange.read_into(memory[: content_length(request)], count=count)
    try:
        more = True
        while more:
            message = await request.receive()
            if exchange.refused is not None:
                raise exchange.refused
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
    finally:
        exchange.forget_memory()
    return memory[: exchange.came_bytes]


async def _copy_into(request: Request, memory: memoryview, *, count: Callable[[int], None] | None) -> memoryview:
    size = 0
    async for chunk in request.stream():
        if count is not None:
            count(len(chunk))
        memory[size : size + len(chunk)] = chunk
        size += len(chunk)
    return memory[:size]


def _too_large(bound: Bound) -> UploadTooLarge:
    return UploadTooLarge(f"The body is larger than {bound.most_bytes} bytes, the limit: {bound.advice}.")


def content_length(request: Request) -> int:
    """Return how many bytes the client announces, 0 if it does not say."""
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isdecimal() else 0
