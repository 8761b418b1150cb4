"""One runner as its host sees it: start, connect gateways, ask how it fares, drain, kill. It knows no requests."""

import asyncio
import itertools
import logging
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any, Self

from app.domain.errors import VariantNotReady
from app.domain.runners import Connect, Drain, FromRunner, Inspect, Load, LoadFailed, Ready
from app.domain.serving import RunnerStatus, Tuning
from app.serving.channel import Channel
from app.serving.process import RunnerProcess
from app.serving.terms import PoolLimits
from app.wire import from_runner

log = logging.getLogger(__name__)

SEND_SECONDS = 5
_serials = itertools.count(1)


class RunnerDied(Exception):
    """The runner died while it loaded."""


class Runner:
    """One process with one loaded variant.

    Attributes:
        serial: names it on this machine; never used again.
    """

    def __init__(self, load: Load, process: RunnerProcess, end: socket.socket) -> None:
        self.load = load
        self.serial = next(_serials)
        self.dead = asyncio.Event()
        self.draining = False
        self.started = time.monotonic()
        self._process = process
        self._channel = Channel(end, decode=from_runner, receive=self._receive, closed=self._on_closed)
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._asked: list[asyncio.Future[RunnerStatus]] = []
        self._board = -1

    @classmethod
    async def start(cls, load: Load, *, limits: PoolLimits) -> Self:
        """Start a process and have it load the artifact.

        Raises:
            VariantNotReady: it refused the artifact, or took too long.
            RunnerDied: it died on the way.
        """
        process, end = await RunnerProcess.spawn(
            name=load.variant.title, artifact=Path(load.path), memory_bytes=limits.memory_bytes
        )
        runner = cls(load, process, end)
        try:
            async with asyncio.timeout(limits.start_timeout_seconds):
                await runner._load()
        except TimeoutError:
            await runner.kill()
            raise VariantNotReady(
                f"{load.variant.title} did not load within {limits.start_timeout_seconds:g} s: try again later."
            ) from None
        except BaseException:
            await runner.kill()
            raise
        return runner

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def tuning(self) -> Tuning:
        """What it measured when it loaded."""
        return self._ready.result().tuning

    def connect(self) -> tuple[int, int]:
        """Give the runner one more gateway; return the descriptors of the gateway's end and of the board."""
        board = os.dup(self._board)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(board)
            raise
        # a gateway that does not read must not hold the runner up
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        self._channel.send(Connect(), descriptors=(theirs.detach(),))
        return ours.detach(), board

    async def status(self) -> RunnerStatus | None:
        """Ask the runner how it fares; None if it is dead."""
        if self.dead.is_set():
            return None
        asked: asyncio.Future[RunnerStatus] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._channel.send(Inspect())
        try:
            return await asked
        except RunnerDied:
            return None

    async def drain(self, *, grace_seconds: float) -> None:
        """Let it answer what it has and hang up, and wait for its end; kill it when that takes too long."""
        self.draining = True
        self._channel.send(Drain())
        await self._process.end(grace_seconds=grace_seconds)
        self._channel.close()
        self._die()

    async def kill(self) -> None:
        """End it at once."""
        self._channel.close()
        self._process.kill()
        await self._process.wait()
        self._die()

    def shoot(self) -> None:
        """End it at once, without waiting: its keeper will notice."""
        self._process.kill()

    async def buried(self) -> int:
        """Wait until it is dead and its process is gone; return the exit status."""
        await self.dead.wait()
        self._process.kill()
        return await self._process.wait()

    async def _load(self) -> None:
        self._channel.send(self.load)
        ready = await self._ready
        best, most = ready.tuning.latency, ready.tuning.throughput
        log.info(
            "runner %d holds %s: engine %s, %s, loaded in %.2f s; alone %.2f ms, together %.0f rows/s with %d streams "
            "of %d rows",
            self.pid,
            self.load.variant.title,
            ready.engine_version,
            ready.float_precision,
            ready.load_seconds,
            best.p50_seconds * 1000,
            most.rows_per_second,
            most.streams,
            most.batch,
        )

    def _receive(self, message: FromRunner, descriptors: list[int]) -> None:
        match message:
            case Ready() if len(descriptors) == 1 and not self._ready.done():
                self._board = descriptors[0]
                self._ready.set_result(message)
                return
            case LoadFailed() if not self._ready.done():
                self._ready.set_exception(
                    VariantNotReady(f"{self.load.variant.title} cannot be loaded: {message.message}")
                )
            case RunnerStatus() if self._asked:
                asked = self._asked.pop(0)
                if not asked.done():
                    asked.set_result(message)
            case _:
                log.error("runner %d sent its host %s out of turn: killed", self.pid, type(message).__name__)
                self._process.kill()
        for descriptor in descriptors:
            os.close(descriptor)

    def _on_closed(self) -> None:
        if not self.draining:
            self._process.kill()
        self._die()

    def _die(self) -> None:
        if self.dead.is_set():
            return
        self.dead.set()
        if self._board >= 0:
            os.close(self._board)
        _fail(self._ready)
        for asked in self._asked:
            _fail(asked)
        self._asked.clear()


def _fail(asked: asyncio.Future[Any]) -> None:
    if not asked.done():
        asked.set_exception(RunnerDied())
        asked.exception()  # seen: whoever waited may be gone
