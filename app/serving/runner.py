"""One runner as its gateway sees it: load, ask, stop. When it dies it stays dead: `keeper` starts the next."""

import asyncio
import logging
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from app.domain.errors import DeadlineExceeded, JobFailure, RunnerCrashed, VariantNotReady, tree
from app.domain.runners import (
    Answer,
    Attach,
    Detach,
    FromRunner,
    ImagePart,
    Infer,
    Load,
    LoadFailed,
    MeasureMemory,
    MemoryUse,
    Part,
    Ready,
    Refusal,
    Stop,
    aligned,
)
from app.domain.variants import Variant
from app.serving.channel import Channel
from app.serving.process import RunnerProcess
from app.serving.requests import Request
from app.serving.segments import Segment, SegmentPool, adopt, lay_out
from app.serving.terms import Inference, PoolLimits

log = logging.getLogger(__name__)

SMALLEST_OUTPUTS = 4096
STOP_SECONDS = 5.0
T = TypeVar("T")

_REFUSALS = {error.code: error for error in tree() if not issubclass(error, JobFailure)}


class RunnerDied(Exception):
    """The runner died before it answered.

    Args:
        suspect: whether this request was the one it was working on.
    """

    def __init__(self, *, suspect: bool) -> None:
        super().__init__()
        self.suspect = suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """A request that the runner has not answered. Its segment is its runner's until then, whoever still waits."""

    segment: Segment
    sent_ns: int
    answered: asyncio.Future[Inference]


class Runner:
    """One process with one loaded variant. It answers in the order in which it was asked."""

    def __init__(self, variant: Variant, process: RunnerProcess, end: socket.socket, *, limits: PoolLimits) -> None:
        self.variant = variant
        self.dead = asyncio.Event()
        self._process = process
        self._limits = limits
        self._channel = Channel(end, receive=self._receive, closed=self._on_closed)
        self._loaded: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._memory: list[asyncio.Future[MemoryUse]] = []
        self._segments = SegmentPool()
        self._sent: dict[int, _Sent] = {}
        self._last_id = 0
        self._most_output_bytes = SMALLEST_OUTPUTS
        self._settled_ns = 0
        self._watchdog: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, variant: Variant, *, artifact: Path, limits: PoolLimits) -> Self:
        """Start a process and have it load the artifact.

        Raises:
            VariantNotReady: it refused the artifact, or took too long.
            RunnerDied: it died on the way.
        """
        process, end = await RunnerProcess.spawn(
            name=f"{variant.model}:{variant.version}@{variant.name}",
            artifact=artifact,
            memory_bytes=limits.memory_bytes,
        )
        runner = cls(variant, process, end, limits=limits)
        try:
            async with asyncio.timeout(limits.start_timeout_seconds):
                await runner._load(artifact)
        except TimeoutError:
            await runner.kill()
            raise VariantNotReady(
                f"{_title(variant)} did not load within {limits.start_timeout_seconds:g} s: try again later."
            ) from None
        except BaseException:
            await runner.kill()
            raise
        return runner

    @property
    def pid(self) -> int:
        return self._process.pid

    async def infer(self, request: Request, *, deadline: float) -> Inference:
        """Send a request and wait for its answer until `deadline`, on the monotonic clock.

        Raises:
            RunnerDied: before it answered.
            DeadlineExceeded: no answer in time.
            OctetError: what the runner refused it with.
        """
        answered = self._send(request, deadline=deadline)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await answered
        except TimeoutError:
            raise DeadlineExceeded(
                f"{_title(self.variant)} did not answer within {self._limits.request_timeout_seconds:g} s: "
                "send fewer rows, or fewer requests at a time."
            ) from None

    async def memory(self) -> MemoryUse:
        """Ask the runner how much memory it takes.

        Raises:
            RunnerDied: it cannot say any more.
        """
        if self.dead.is_set():
            raise RunnerDied(suspect=False)
        asked: asyncio.Future[MemoryUse] = asyncio.get_running_loop().create_future()
        self._memory.append(asked)
        self._channel.send(MeasureMemory())
        return await asked

    async def stop(self) -> None:
        """Let it answer what it has, and end it."""
        self._channel.send(Stop())
        await self._process.end(grace_seconds=STOP_SECONDS)
        self._channel.close()
        self._die()

    async def kill(self) -> None:
        """End it at once."""
        self._channel.close()
        self._process.kill()
        await self._process.wait()
        self._die()

    async def buried(self) -> int:
        """Wait until it is dead and its process is gone; return the exit status."""
        await self.dead.wait()
        self._process.kill()
        return await self._process.wait()

    async def _load(self, artifact: Path) -> None:
        self._channel.send(
            Load(
                path=str(artifact),
                sha256=self.variant.artifact.sha256,
                execution=self.variant.execution,
                signature=self.variant.signature,
                threads=self._limits.threads,
                max_answer_bytes=self._limits.max_answer_bytes,
            )
        )
        ready = await self._loaded
        log.info(
            "runner %d holds %s: engine %s, %s, loaded in %.2f s",
            self.pid,
            _title(self.variant),
            ready.engine_version,
            ready.float_precision,
            ready.load_seconds,
        )

    def _send(self, request: Request, *, deadline: float) -> asyncio.Future[Inference]:
        if self.dead.is_set():
            raise RunnerDied(suspect=False)
        inputs, inputs_end = lay_out(request.arrays, self.variant.signature.inputs)
        if request.image is not None:
            inputs_end = aligned(len(request.image))
        segment, descriptor = self._segments.take(inputs_end + self._most_output_bytes)
        if descriptor is not None:
            self._channel.send(Attach(segment=segment.number, size_bytes=segment.size_bytes), descriptor=descriptor)
        segment.write(request.image or b"", inputs, request.arrays)
        self._last_id += 1
        answered: asyncio.Future[Inference] = asyncio.get_running_loop().create_future()
        self._sent[self._last_id] = _Sent(segment=segment, sent_ns=time.monotonic_ns(), answered=answered)
        self._channel.send(self._message(request, segment, inputs, inputs_end, deadline))
        if self._watchdog is None:
            self._watch(self._limits.request_timeout_seconds)
        return answered

    def _message(
        self, request: Request, segment: Segment, inputs: tuple[Part, ...], inputs_end: int, deadline: float
    ) -> Infer:
        image = None
        if request.image is not None and request.preprocessing is not None:
            image = ImagePart(size_bytes=len(request.image), preprocessing=request.preprocessing)
        return Infer(
            id=self._last_id,
            segment=segment.number,
            rows=request.rows,
            inputs=inputs,
            image=image,
            outputs_at=inputs_end,
            deadline_ns=int(deadline * 1e9),
        )

    def _receive(self, message: FromRunner, descriptor: int | None) -> None:
        match message:
            case Answer():
                self._on_answer(message, descriptor)
            case Refusal():
                _fail(self._settle(message.id), _REFUSALS.get(message.code, RunnerCrashed)(message.message))
            case MemoryUse() if self._memory:
                _succeed(self._memory.pop(0), message)
            case Ready():
                _succeed(self._loaded, message)
            case LoadFailed():
                _fail(self._loaded, VariantNotReady(f"{_title(self.variant)} cannot be loaded: {message.message}"))

    def _on_answer(self, answer: Answer, descriptor: int | None) -> None:
        sent = self._sent[answer.id]
        try:
            segment = sent.segment if descriptor is None else adopt(descriptor, answer.overflow_bytes)
            outputs = {} if sent.answered.done() else segment.read(answer.outputs)
        except (TypeError, ValueError) as error:
            _fail(self._settle(answer.id), RunnerCrashed(f"The runner's answer cannot be read: {error}"))
            return
        self._most_output_bytes = max(self._most_output_bytes, answer.overflow_bytes)
        inference = Inference(
            outputs=outputs,
            queue_seconds=(answer.started_ns - sent.sent_ns) / 1e9,
            compute_seconds=answer.compute_seconds,
            rows=answer.rows,
        )
        _succeed(self._settle(answer.id), inference)

    def _settle(self, request_id: int) -> asyncio.Future[Inference]:
        """Take an answered request off the books, and its segment back."""
        self._settled_ns = time.monotonic_ns()
        sent = self._sent.pop(request_id)
        for dropped in self._segments.give_back(sent.segment):
            self._channel.send(Detach(segment=dropped.number))
        return sent.answered

    def _watch(self, seconds: float) -> None:
        self._watchdog = asyncio.get_running_loop().call_later(seconds, self._check_alive)

    def _check_alive(self) -> None:
        """Kill a runner that was asked, but has answered no request for as long as a request may take."""
        self._watchdog = None
        if not self._sent:
            return
        oldest = next(iter(self._sent.values()))
        stuck_seconds = (time.monotonic_ns() - max(oldest.sent_ns, self._settled_ns)) / 1e9
        if stuck_seconds < self._limits.request_timeout_seconds:
            self._watch(self._limits.request_timeout_seconds - stuck_seconds)
            return
        log.error("runner %d (%s) hangs: killed", self.pid, _title(self.variant))
        self._process.kill()

    def _on_closed(self) -> None:
        self._process.kill()
        self._die()

    def _die(self) -> None:
        """Fail everything that waits. The oldest request is the one that the runner was working on."""
        self.dead.set()
        if self._watchdog is not None:
            self._watchdog.cancel()
        _fail(self._loaded, RunnerDied(suspect=False))
        for asked in self._memory:
            _fail(asked, RunnerDied(suspect=False))
        for place, sent in enumerate(self._sent.values()):
            _fail(sent.answered, RunnerDied(suspect=place == 0))
        self._sent.clear()
        self._memory.clear()
        self._segments = SegmentPool()


def _title(variant: Variant) -> str:
    return f"Variant {variant.model}:{variant.version}@{variant.name}"


def _succeed(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # seen: whoever waited may be gone
