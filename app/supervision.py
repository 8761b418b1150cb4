"""Keeps programs running for as long as a block, again whenever they end. Knows nothing of what they do."""

import asyncio
import ctypes
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 30.0
_HOPELESS = 3


@dataclass(slots=True, kw_only=True)
class Program:
    """A program that is kept running.

    Attributes:
        grace: seconds it has to end by itself when it is told to.
        at_death: what it is sent if this process dies without stopping it.
        early_ends: how often in a row it ended soon after its start.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    grace: float
    at_death: signal.Signals = signal.SIGTERM
    early_ends: int = 0

    @property
    def name(self) -> str:
        return " ".join(Path(word).name for word in self.command[:3])

    @property
    def hopeless(self) -> bool:
        """Whether it ends soon after every start."""
        return self.early_ends >= _HOPELESS

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next start: twice as long after every early end."""
        return min(_FIRST_PAUSE_SECONDS * 2.0 ** max(0, self.early_ends - 1), _LONGEST_PAUSE_SECONDS)


@asynccontextmanager
async def kept_running(program: Program) -> AsyncIterator[Program]:
    """Run a program for as long as the block; then end it, by force after its grace."""
    stopping = asyncio.Event()
    keeper = asyncio.create_task(_keep(program, stopping))
    try:
        yield program
    finally:
        stopping.set()
        await keeper


async def _keep(program: Program, stopping: asyncio.Event) -> None:
    stop, clock = asyncio.create_task(stopping.wait()), asyncio.get_running_loop().time
    while not stopping.is_set():
        began, process = clock(), await _start(program)
        end = asyncio.create_task(process.wait())
        await asyncio.wait({end, stop}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set():
            await _end(process, end, grace=program.grace)
            return
        program.early_ends = program.early_ends + 1 if clock() - began < _STEADY_SECONDS else 0
        pause = program.pause_seconds
        sys.stderr.write(
            f"octet: {program.name} ended with {process.returncode} and is started again in {pause:g} s.\n"
        )
        await asyncio.wait({stop}, timeout=pause)


async def _start(program: Program) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *program.command,
        env=program.environment,
        stdout=sys.stderr,  # our own standard output is for whoever waits for the address
        start_new_session=True,
        preexec_fn=die_with_parent(program.at_death),
    )


async def _end(process: asyncio.subprocess.Process, end: "asyncio.Task[int]", *, grace: float) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    done, _ = await asyncio.wait({end}, timeout=grace)
    if not done:
        process.kill()
        await end


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return what a process calls to be sent a signal when the thread that started it ends."""
    prctl, set_death_signal = ctypes.CDLL(None).prctl, 1

    def before_exec() -> None:
        prctl(set_death_signal, number)

    return before_exec
