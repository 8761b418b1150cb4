"""A gateway's line to one runner: ask, cancel, hang up. When the runner dies the line is dead: `desk` gets another."""

import asyncio
import itertools
import logging
import os
import socket
import time
from dataclasses import dataclass
from typing import Protocol

from app.domain.errors import OctetError, RunnerCrashed, VariantNotReady, refusal_of
from app.domain.runners import (
    Answer,
    Attach,
    Cancel,
    Closing,
    Detach,
    Form,
    FromRunner,
    Infer,
    Part,
    Refusal,
)
from app.serving.channel import Channel
from app.serving.segments import Board, Segment, adopt
from app.serving.terms import Inference
from app.wire import from_runner

log = logging.getLogger(__name__)


class LineLost(Exception):
    """The runner died before it answered.

    Args:
        suspect: whether it was computing this request.
    """

    def __init__(self, *, suspect: bool) -> None:
        super().__init__()
        self.suspect = suspect


class LineClosing(Exception):
    """The runner takes no more requests: this one was not sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request as it lies in a segment, ready to be sent, more than once if need be.

    Attributes:
        outputs_at: the first byte of the segment that the inputs leave free.
    """

    segment: Segment
    form: Form
    rows: int
    parts: tuple[Part, ...]
    outputs_at: int
    deadline_ns: int
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """A question that the runner has not answered. Its segment is the runner's until then, whoever still waits."""

    segment: Segment
    sent_ns: int
    answered: asyncio.Future[Inference]


class Owner(Protocol):
    """Whom a line tells what becomes of it."""

    def left(self, segment: Segment) -> None:
        """The runner needs the segment no more."""

    def overflowed(self, size_bytes: int) -> None:
        """An answer needed so many bytes and found no room behind its inputs."""

    def mistrusted(self, line: "Line") -> None:
        """The runner lives, but what it sends cannot be understood: it may still write where it was asked to."""

    def changed(self, line: "Line") -> None:
        """The line is dead, or takes no more requests."""


class Line:
    """One connection to one runner.

    Attributes:
        serial: names the runner on this machine.
        open: whether it takes requests.
        closing: whether the runner said that it takes no more.
    """

    def __init__(self, serial: int, end: socket.socket, board: Board, *, owner: Owner) -> None:
        self.serial = serial
        self.open = True
        self.closing = False
        self.dead = False
        self._board = board
        self._owner = owner
        self._channel = Channel(end, decode=from_runner, receive=self._receive, closed=self._die)
        self._attached: set[int] = set()
        self._sent: dict[int, _Sent] = {}
        self._ids = itertools.count(1)
        self._settled_ns = 0

    @property
    def in_flight(self) -> int:
        return len(self._sent)

    def wait_seconds(self) -> float:
        """Return how long a request that comes now will wait, as the runner reckons."""
        return self._board.wait_seconds()

    def oldest_seconds(self) -> float:
        """Return for how long the runner has had the question that it has had the longest."""
        if not self._sent:
            return 0.0
        return (time.monotonic_ns() - next(iter(self._sent.values())).sent_ns) / 1e9

    def stuck_seconds(self) -> float:
        """Return for how long the runner has been asked something and has answered nothing."""
        if not self._sent:
            return 0.0
        oldest = next(iter(self._sent.values()))
        return (time.monotonic_ns() - max(oldest.sent_ns, self._settled_ns)) / 1e9

    async def ask(self, question: Question, *, alone: bool) -> Inference:
        """Send a question and wait for its answer, for as long as the caller does: to give up, cancel.

        Raises:
            LineLost: the runner died before it answered.
            LineClosing: it takes no more questions.
            VariantNotReady: this process has no descriptor left to send it with.
            OctetError: what it refused the question with.
        """
        if not self.open:
            raise LineClosing
        number, answered = self._send(question, alone=alone)
        try:
            return await answered
        except asyncio.CancelledError:
            if number in self._sent:
                self._channel.send(Cancel(id=number))
            raise

    def detach(self, segment: Segment) -> None:
        """Forget a segment that is kept no longer."""
        if segment.number in self._attached:
            self._attached.discard(segment.number)
            self._channel.send(Detach(segment=segment.number))

    def close(self) -> None:
        """Hang up at once; what was not answered is lost."""
        self._channel.close()
        self._die()

    def _send(self, question: Question, *, alone: bool) -> tuple[int, asyncio.Future[Inference]]:
        segment, number = question.segment, next(self._ids)
        segment.forget_begun()
        infer = Infer(
            id=number,
            segment=segment.number,
            form=question.form,
            rows=question.rows,
            inputs=question.parts,
            outputs_at=question.outputs_at,
            deadline_ns=question.deadline_ns,
            priority=question.priority,
            alone=alone,
        )
        try:
            if segment.number not in self._attached:
                self._attach(segment)
            self._channel.send(infer)
        except OSError as error:
            raise VariantNotReady(
                f"The request cannot be sent to its runner ({error}): try again later, or let the gateway's process "
                "open more files."
            ) from error
        # booked only now: what could not be sent is never answered
        segment.users += 1
        answered: asyncio.Future[Inference] = asyncio.get_running_loop().create_future()
        self._sent[number] = _Sent(segment=segment, sent_ns=time.monotonic_ns(), answered=answered)
        return number, answered

    def _attach(self, segment: Segment) -> None:
        attach = Attach(segment=segment.number, size_bytes=segment.size_bytes)
        self._channel.send(attach, descriptors=(os.dup(segment.descriptor),))
        self._attached.add(segment.number)

    def _receive(self, message: FromRunner, descriptors: list[int]) -> None:
        match message:
            case Answer():
                self._on_answer(message, descriptors)
            case Refusal():
                self._settle(message.id, refusal_of(message.code, message.message, otherwise=RunnerCrashed))
            case Closing():
                self.open, self.closing = False, True
                self._owner.changed(self)
                self._hang_up_when_done()
            case _:
                log.error("A runner sent its gateway %s", type(message).__name__)
                self._channel.broken = True
                self.close()

    def _on_answer(self, answer: Answer, descriptors: list[int]) -> None:
        sent = self._sent[answer.id]
        try:
            # without a descriptor to spare the kernel delivers an answer, but not the descriptor beside it
            segment = adopt(descriptors[0], answer.overflow_bytes) if answer.overflow_bytes else sent.segment
            outputs = {} if sent.answered.done() else segment.read(answer.outputs)
        except (LookupError, OSError, TypeError, ValueError) as error:
            self._settle(answer.id, RunnerCrashed(f"The runner's answer cannot be read: {error}"))
            return
        if descriptors:
            self._owner.overflowed(answer.overflow_bytes)
        inference = Inference(
            outputs=outputs,
            queue_seconds=answer.queue_seconds,
            compute_seconds=answer.compute_seconds,
            rows=answer.rows,
        )
        self._settle(answer.id, inference)

    def _settle(self, number: int, outcome: Inference | OctetError) -> None:
        """Take a question off the books, tell who waits, and give its segment back."""
        self._settled_ns = time.monotonic_ns()
        sent = self._sent.pop(number)
        if not sent.answered.done():
            if isinstance(outcome, Inference):
                sent.answered.set_result(outcome)
            else:
                sent.answered.set_exception(outcome)
        self._owner.left(sent.segment)
        self._hang_up_when_done()

    def _hang_up_when_done(self) -> None:
        if not self.open and not self._sent and not self.dead:
            self.close()

    def _die(self) -> None:
        """Fail everything that waits. What the runner was computing is suspected of its death.

        Its memory is not used again: the line can be lost while the runner lives and writes.
        """
        if self.dead:
            return
        self.dead, self.open = True, False
        self._board.close()
        if self._channel.broken:
            self._owner.mistrusted(self)
        for sent in self._sent.values():
            if not sent.answered.done():
                sent.answered.set_exception(LineLost(suspect=sent.segment.begun))
                sent.answered.exception()  # seen: whoever waited may be gone
            sent.segment.spoilt = True
            self._owner.left(sent.segment)
        self._sent.clear()
        self._owner.changed(self)
