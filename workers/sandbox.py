"""Runs one stage of a job in a process that can do nothing but its work, and watches it from outside.

What it says meanwhile and leaves behind is read by `workers.claims`; whether it is true is the job's business.
"""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter

import workers
from app.domain.errors import DoesNotFit, JobFailure, StageCrashed
from workers import usage
from workers.claims import (
    RESULT,
    Heard,
    OnCheckpoint,
    OnLog,
    OnProgress,
    OnTraining,
    read_result,
    relay_channel,
    relay_output,
)
from workers.confinement import ALLOW_UNSANDBOXED
from workers.family import Family
from workers.limits import Limits
from workers.stage_records.training import CHECKPOINT_OUTPUT, TrainSpec
from workers.stages import STAGES
from workers.trees import remove_tree

OnMemory = Callable[[int], None]

POLL_SECONDS = 0.1


async def run_stage(
    stage: str,
    spec: object,
    *,
    scratch: Path,
    limits: Limits,
    on_progress: OnProgress,
    on_log: OnLog,
    on_memory: OnMemory | None = None,
    on_training: OnTraining | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    allow_unsandboxed: bool = False,
) -> Any:  # noqa: ANN401 - the record that `STAGES` names
    """Run a stage of `STAGES` in the sandbox and return its result record.

    Args:
        spec: the stage's record; its paths are relative to `scratch`.
        scratch: the only folder the stage may write to; a hostile stage may have left anything there.
        on_memory: told every tenth of a second how many bytes of memory the stage holds.
        on_training: told where training stands; a stage that does not train has nothing to say.
        on_checkpoint: told after which step the stage says to have left its state; what lies there is a claim, too.

    Raises:
        JobFailure: what the stage reported, or the limit it broke, or how it died.
    """
    entry = STAGES[stage]
    scratch = await asyncio.to_thread(_prepare, scratch)
    if isinstance(spec, TrainSpec):
        spec = replace(spec, began_at=time.time())
        limits = replace(limits, state=CHECKPOINT_OUTPUT, state_seconds=spec.state_seconds)
    given = TypeAdapter[Any](entry.spec).dump_json(spec)
    program = _program(getattr(spec, "processes", 1), limits)
    async with _started(stage, scratch, program, limits=limits, allow_unsandboxed=allow_unsandboxed) as child:
        heard = Heard()
        guard = asyncio.create_task(_guard(child, scratch, limits, on_memory))
        await _all_or_none(
            guard,
            asyncio.create_task(relay_output(child.output, heard, on_log=on_log, scratch=scratch)),
            asyncio.create_task(
                relay_channel(
                    child.channel,
                    heard,
                    on_progress=on_progress,
                    on_training=on_training,
                    on_checkpoint=on_checkpoint,
                )
            ),
            asyncio.create_task(_tell(child.process, given)),
        )
    said = limits.explain(heard.failure) if heard.failure else None
    failure = guard.result() or said or _death(stage, child.process.returncode, hint=heard.hint)
    if failure is not None:
        raise failure
    return read_result(stage, scratch)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Child:
    process: Process
    family: Family
    channel: asyncio.StreamReader
    output: asyncio.StreamReader


def _prepare(folder: Path) -> Path:
    """Give the stage an empty home and temporary folder, whatever an earlier one left; return the real path."""
    scratch = folder.resolve(strict=True)
    for name in ("tmp", RESULT):
        left = scratch / name
        if left.is_dir() and not left.is_symlink():
            remove_tree(left)
        else:
            left.unlink(missing_ok=True)
    (scratch / "tmp" / "home").mkdir(parents=True)
    return scratch


def environment(scratch: Path, *, allow_unsandboxed: bool) -> dict[str, str]:
    """Return all that a stage's process may know of the one that starts it."""
    temporary = str(scratch / "tmp")
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": f"{temporary}/home",
        "USER": "octet",
        "TMPDIR": temporary,
        "TORCHINDUCTOR_CACHE_DIR": f"{temporary}/inductor",
        "PYTHONPATH": os.pathsep.join(str(Path(folder).parent) for folder in workers.__path__),
        "PYTHONSAFEPATH": "1",  # the scratch folder is the working directory, and must not be imported from
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take the cores from those they wait for
        ALLOW_UNSANDBOXED: "1" if allow_unsandboxed else "0",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """A module to run, and its arguments beyond those that all have."""

    module: str
    arguments: tuple[object, ...] = ()


def _program(processes: int, limits: Limits) -> _Program:
    if processes == 1:
        return _Program(module="workers.stage_child")
    machines = limits.machines
    cores = len(os.sched_getaffinity(0))
    if processes > (most := cores * (machines.number if machines else 1)):
        raise DoesNotFit(
            f"{processes} processes are more than the {most} cores there are for them, {cores} on each machine: set "
            f"the recipe's processes to at most {most}."
        )
    if machines is None:
        return _Program(module="workers.training.launch", arguments=(processes,))
    if processes % machines.number:
        raise DoesNotFit(
            f"{processes} processes cannot be shared evenly by {machines.number} machines (OCTET_TRAINING_NODES): "
            f"set the recipe's processes to a multiple of {machines.number}."
        )
    place = (machines.rendezvous, machines.number, uuid4().hex, 0)
    return _Program(module="workers.training.launch", arguments=(processes // machines.number, *place))


@asynccontextmanager
async def _started(
    stage: str, scratch: Path, program: _Program, *, limits: Limits, allow_unsandboxed: bool
) -> AsyncIterator[_Child]:
    """Start the stage's process; it is gone when this ends, however it ends, with all that it has started."""
    reading, writing = os.pipe()
    arguments = [stage, os.getpid(), writing, limits.memory_bytes, limits.scratch_bytes, limits.seconds]
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", program.module),
            *map(str, (*arguments, *program.arguments)),
            cwd=scratch,
            env=environment(scratch, allow_unsandboxed=allow_unsandboxed),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(writing,),
            start_new_session=True,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    family = Family(process.pid)
    channel, transport = await _reader(reading)
    try:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        yield _Child(process=process, family=family, channel=channel, output=process.stdout)
    finally:
        transport.close()
        await _end(process, family)


async def _reader(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    return reader, transport


async def _end(process: Process, family: Family) -> None:
    if process.returncode is None:
        family.end()
        with suppress(ProcessLookupError):
            process.kill()
    # Shielded: a cancelled job must not leave its child behind.
    await asyncio.shield(_ended(process, family))


async def _ended(process: Process, family: Family) -> None:
    await process.wait()
    await family.gone()


async def _all_or_none(*tasks: asyncio.Task[Any]) -> None:
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tell(process: Process, spec: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - for the type checker
    try:
        process.stdin.write(spec)
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        return  # it died before it read; how it died is what counts


async def _guard(child: _Child, scratch: Path, limits: Limits, on_memory: OnMemory | None) -> JobFailure | None:
    """Wait for the process to end; end it and say why if it takes more than it may. Look once more at what it left."""
    process, deadline = child.process, time.monotonic() + limits.seconds
    while True:
        try:
            await asyncio.wait_for(process.wait(), POLL_SECONDS)
        except TimeoutError:
            pass
        else:
            await child.family.gone()
            return await asyncio.to_thread(limits.broken_on_disk, scratch)
        child.family.look()
        if on_memory is not None and (used := usage.of_family(process.pid)) is not None:
            on_memory(used.memory_bytes)
        broken = await asyncio.to_thread(limits.broken_by, process.pid, scratch)
        if broken is None and time.monotonic() > deadline:
            broken = limits.out_of_time()
        if broken is not None:
            await _end(process, child.family)
            return broken


def _death(stage: str, code: int | None, *, hint: str) -> StageCrashed | None:
    """Say how a process ended that reported nothing; None if it ended well."""
    if code == 0:
        return None
    if code is not None and code < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = f"was killed by {names.get(-code, f'signal {-code}')}"
    else:
        how = f"ended with exit code {code}"
    said = f" after saying: {hint}" if hint else ""
    return StageCrashed(f"The stage {stage!r} {how}{said}. The job's log has the details.")
