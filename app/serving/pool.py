"""A gateway's way to runners: memory for a request, an answer to it, and what the host is asked beside."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator

from app.domain.errors import VariantNotReady
from app.domain.preprocessing import ImagePreprocessing
from app.domain.runners import (
    SEGMENT_HEADER_BYTES,
    Acquire,
    Done,
    Granted,
    HeldVariant,
    Kill,
    Overview,
    Part,
    Prepare,
    Release,
    Survey,
    aligned,
)
from app.domain.serving import Knobs, RunnerStatus, Servable
from app.domain.variants import Variant
from app.serving.desk import Desk
from app.serving.host_link import Connect, HostGone, HostLink, Reply
from app.serving.line import Line, Question
from app.serving.placing import copy, find, lay_out
from app.serving.requests import Request, check, check_own_limit
from app.serving.segments import Board, Segment
from app.serving.terms import Inference, Inputs, Observer, PoolLimits

Describe = Callable[[Variant], Awaitable[Servable]]

SURVEY_SECONDS = 3.0
"""How long the host may take beyond what it waits for itself: one that says nothing for longer stands still."""

_Key = tuple[str, int, str]


class Room:
    """Memory for one request's body, which its runner will read in place.

    Attributes:
        memory: at least as many bytes as were asked for.
    """

    def __init__(self, segment: Segment, *, desk: Desk, start: int) -> None:
        self.segment = segment
        self.desk = desk
        self.memory = segment.memory[start:]


class RunnerPool:
    """Answers requests with the runners of a host.

    Args:
        connect: connects to the host.
        describe: looks up what a runner needs to know of a variant.
        observer: is told about requests that are sent again.
    """

    def __init__(self, connect: Connect, *, describe: Describe, observer: Observer, limits: PoolLimits) -> None:
        self._describe = describe
        self._observer = observer
        self._limits = limits
        self._desks: dict[_Key, Desk] = {}
        self._closed = False
        self._host = HostLink(connect)

    @contextlib.contextmanager
    def room(self, variant: Variant, *, size_bytes: int, lead_bytes: int = 0) -> Iterator[Room]:
        """Lend memory for a body of so many bytes, for as long as the block and the request last.

        Args:
            lead_bytes: of the body before its tensors, which are then aligned as engines like them.
        """
        desk = self._desk(variant, None)
        start = SEGMENT_HEADER_BYTES + -lead_bytes % SEGMENT_HEADER_BYTES
        segment = desk.segments.take(aligned(start + size_bytes) + desk.most_output_bytes)
        try:
            yield Room(segment, desk=desk, start=start)
        finally:
            desk.segments.leave(segment)

    async def infer(
        self,
        variant: Variant,
        inputs: Inputs,
        *,
        preprocessing: ImagePreprocessing | None = None,
        timeout_seconds: float | None = None,
        priority: int = 0,
        room: Room | None = None,
    ) -> Inference:
        """Answer one request with `variant`, loading it first if need be.

        Args:
            timeout_seconds: how long the answer may take; at most, and by default, what the limits say.
            priority: higher ones are computed first; 0 is the usual one.
            room: in which inputs may lie already.

        Raises:
            SignatureMismatch, BatchTooLarge, RequestInvalid, ImageInvalid: the request does not fit.
            VariantNotReady, QueueFull, DeadlineExceeded, RunnerCrashed: it fits, but got no answer.
        """
        request = check(
            variant.signature, inputs, preprocessing=preprocessing, max_batch_size=self._limits.max_batch_size
        )
        check_own_limit(variant, request)
        desk = self._desk(variant, preprocessing)
        deadline_ns = self.deadline_ns(timeout_seconds)
        with _placed(desk, request, room) as (segment, parts, end):
            question = Question(
                segment=segment,
                form=request.form,
                rows=request.rows,
                parts=parts,
                outputs_at=end,
                deadline_ns=deadline_ns,
                priority=priority,
            )
            return await desk.answer(question)

    def deadline_ns(self, timeout_seconds: float | None) -> int:
        """Return the latest time, on the monotonic clock, at which a request that comes now may be answered."""
        most = self._limits.request_timeout_seconds
        return time.monotonic_ns() + int(min(timeout_seconds or most, most) * 1e9)

    def check_wait(self, variant: Variant, *, timeout_seconds: float | None) -> None:
        """Check that a request that comes now is worth reading.

        Raises:
            QueueFull: it would wait beyond its deadline, or too many wait.
        """
        desk = self._desks.get(variant.key)
        if desk is not None:
            desk.check_wait(self.deadline_ns(timeout_seconds))

    async def load(self, variant: Variant, *, knobs: Knobs | None = None) -> None:
        """Start the variant's runners, unless they are there; with other knobs than theirs, replace them.

        Raises:
            VariantNotReady, StoreUnavailable, StoreFull: they cannot be started.
        """
        servable = await self._describe(variant)
        order = Prepare(id=self._host.next_id(), variant=servable, knobs=knobs)
        # room is waited for, then every start, then the end of what these replace
        starts = (knobs or self._limits.knobs).instances * self._limits.start_timeout_seconds
        await self._order(order, Done, seconds=starts + 2 * self._limits.request_timeout_seconds)

    async def unload(self, variant: Variant) -> None:
        """Stop the variant's runners once what they hold is answered. One that is not loaded stays so."""
        order = Release(id=self._host.next_id(), variant=Servable.of(variant, None))
        await self._order(order, Done, seconds=self._limits.request_timeout_seconds)

    def ready(self, variant: Variant) -> bool:
        """Whether a request would be answered without waiting for a runner to start."""
        desk = self._desks.get(variant.key)
        return desk is not None and any(line.open for line in desk.lines)

    async def statistics(self) -> tuple[RunnerStatus, ...]:
        """Return how every runner of this machine fares; one that does not say at once is left out."""
        return (await self._survey()).runners

    async def held(self) -> tuple[HeldVariant, ...]:
        """Return which variants are kept on this machine, with their ready runners."""
        return (await self._survey()).held

    async def _survey(self) -> Overview:
        return await self._order(Survey(id=self._host.next_id()), Overview, seconds=0)

    async def _order(self, question: Prepare | Release | Survey, kind: type[Reply], *, seconds: float) -> Reply:
        """Ask the host something that is not repeated by itself.

        Args:
            seconds: how long it may have to wait for others to do it.

        Raises:
            OctetError: it was denied, or the host has ended or does not reply in time.
        """
        try:
            async with asyncio.timeout(seconds + SURVEY_SECONDS):
                reply, _ = await self._host.ask(question, kind)
        except TimeoutError:
            raise VariantNotReady(
                f"The process that starts runners did not reply within {seconds + SURVEY_SECONDS:g} s: it may still do "
                "as asked, so look before you try again."
            ) from None
        except HostGone:
            raise VariantNotReady(
                "The process that starts runners has ended and is being started again: try again soon."
            ) from None
        return reply

    def in_flight(self) -> int:
        """Return how many requests of this gateway wait for a runner or for its answer."""
        return sum(desk.in_flight for desk in self._desks.values())

    def segment_bytes(self) -> dict[tuple[str, int, str], int]:
        """Return how much shared memory this gateway keeps, by model, version and variant."""
        return {key: desk.segments.size_bytes for key, desk in self._desks.items()}

    async def aclose(self) -> None:
        """Take no more requests, answer those in flight, and hang up."""
        self._closed = True
        await asyncio.gather(*(desk.idle.wait() for desk in self._desks.values()))
        for desk in self._desks.values():
            desk.close()
        self._host.close()

    def _desk(self, variant: Variant, preprocessing: ImagePreprocessing | None) -> Desk:
        if self._closed:
            raise VariantNotReady("The service is stopping: send the request to another gateway.")
        desk = self._desks.get(variant.key)
        if desk is None:
            desk = self._desks[variant.key] = Desk(
                Servable.of(variant, preprocessing),
                connect=self._connect,
                hangs=self._kill,
                observer=self._observer,
                limits=self._limits,
            )
        elif desk.variant.preprocessing is None and preprocessing is not None:
            desk.variant = Servable.of(variant, preprocessing)
        return desk

    async def _connect(self, desk: Desk) -> tuple[list[Line], bool]:
        have = tuple(line.serial for line in desk.lines if line.open)
        acquire = Acquire(id=self._host.next_id(), variant=desk.variant, have=have)
        try:
            granted, descriptors = await self._host.ask(acquire, Granted)
        except HostGone:
            return [], True
        return _lines(granted, descriptors, desk), granted.more

    def _kill(self, line: Line) -> None:
        self._host.tell(Kill(serial=line.serial))


def _lines(granted: Granted, descriptors: list[int], desk: Desk) -> list[Line]:
    """Make lines of what the host granted.

    Raises:
        VariantNotReady: this process has too few descriptors left; those that came are closed.
    """
    lines: list[Line] = []
    left = list(descriptors)
    try:
        for serial in granted.serials:
            board = Board(left.pop(1))
            lines.append(Line(serial, socket.socket(fileno=left.pop(0)), board, owner=desk))
    except (OSError, IndexError) as error:  # the kernel drops descriptors for which there is no room
        for line in lines:
            line.close()
        for descriptor in left:
            os.close(descriptor)
        raise VariantNotReady(
            f"This gateway has no descriptor left for a line to {desk.variant.title} ({error}): try again later, or "
            "let its process open more files."
        ) from error
    return lines


@contextlib.contextmanager
def _placed(desk: Desk, request: Request, room: Room | None) -> Iterator[tuple[Segment, tuple[Part, ...], int]]:
    """Yield a segment with the request's arrays, their places, and the first byte behind them."""
    # one variant's memory is never shown to another's runner
    found = find(request, room.segment) if room is not None and room.desk is desk else None
    if room is not None and found is not None:
        yield room.segment, *found
        return
    parts, end = lay_out(request)
    segment = desk.segments.take(end + desk.most_output_bytes)
    try:
        copy(request, parts, segment)
        yield segment, parts, end
    finally:
        desk.segments.leave(segment)
