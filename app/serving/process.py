"""Start a runner's process and end it. Knows nothing of what it holds."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Self

import app

log = logging.getLogger(__name__)

# All a runner's environment: no key, no password and no address of a service can be among it.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
_CHUNK_BYTES = 2**16


class RunnerProcess:
    """One child in a session of its own, so that Ctrl-C in the gateway's terminal does not reach it."""

    def __init__(self, process: asyncio.subprocess.Process, *, name: str) -> None:
        self._process = process
        self._name = name
        self._log_task = asyncio.create_task(self._log_lines(), name=f"log of {name}")

    @classmethod
    async def spawn(cls, *, name: str, artifact: Path, memory_bytes: int) -> tuple[Self, socket.socket]:
        """Start a runner that may read one artifact; return it and this side's end of its socket pair."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        starting = asyncio.create_task(_start(theirs, artifact=artifact, memory_bytes=memory_bytes))
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            ours.close()
            unwanted = await starting
            unwanted.kill()
            await unwanted.communicate()
            raise
        except BaseException:
            ours.close()
            raise
        return cls(process, name=name), ours

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Wait until it has ended and its last lines are logged; return its exit status, -9 if it was killed."""
        status = await self._process.wait()
        await asyncio.shield(self._log_task)
        return status

    async def end(self, *, grace_seconds: float) -> int:
        """Wait for it to end by itself, then kill it; return its exit status."""
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait()
        except TimeoutError:
            self.kill()
        return await self.wait()

    def kill(self) -> None:
        """Kill it, at once. A process that has ended already is left alone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    async def _log_lines(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        while chunk := await stream.read(_CHUNK_BYTES):
            for line in chunk.decode(errors="replace").splitlines():
                log.info("runner %d (%s): %s", self.pid, self._name, line)


async def _start(theirs: socket.socket, *, artifact: Path, memory_bytes: int) -> asyncio.subprocess.Process:
    with theirs:
        return await asyncio.create_subprocess_exec(
            *_command(theirs.fileno(), artifact=artifact, memory_bytes=memory_bytes),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment(),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )


def _command(descriptor: int, *, artifact: Path, memory_bytes: int) -> list[str]:
    told = {"--socket": descriptor, "--gateway": os.getpid(), "--artifact": artifact, "--memory": memory_bytes}
    arguments = [str(word) for pair in told.items() for word in pair]
    return [sys.executable, "-P", "-m", "workers.runners", *arguments]


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return kept | {"PYTHONPATH": str(Path(app.__file__).parent.parent), "PYTHONUNBUFFERED": "1"}
