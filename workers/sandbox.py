"""Runs one stage of a job in a process that can do nothing but its work, and watches it from outside.

What comes back is a claim: lengths, numbers and files are checked here; whether it is true is the job's business.
"""

import asyncio
import json
import os
import signal
import stat
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

import workers
from app.domain.errors import (
    DoesNotFit,
    InternalFailure,
    InvalidInput,
    JobFailure,
    StageCrashed,
    WorkerLost,
    job_failure,
)
from app.domain.training import MOST_STEPS, TrainingProgress
from workers import usage
from workers.confinement import ALLOW_UNSANDBOXED, missing_protections
from workers.family import Family
from workers.limits import Limits
from workers.stages import CHECKPOINT_OUTPUT, STAGES, TrainSpec
from workers.trees import remove_tree

__all__ = ["Limits", "environment", "missing_protections", "open_output", "output_path", "run_stage"]

OnProgress = Callable[[float, str], Awaitable[None]]
OnLog = Callable[[str], Awaitable[None]]
OnMemory = Callable[[int], None]
OnTraining = Callable[[TrainingProgress], Awaitable[None]]
OnCheckpoint = Callable[[int], Awaitable[None]]

RESULT = "result.json"
POLL_SECONDS = 0.1
MAX_RESULT_BYTES = 4 * 2**20
MAX_LOG_BYTES = 2**20
MAX_LOG_LINES = 10_000
MAX_LINE_BYTES = 4_000
MAX_HINT_CHARS = 200
MAX_MESSAGE_CHARS = 600
MAX_STEP_CHARS = 100
MAX_TEXT_CHARS = 256

_TRAINING = TypeAdapter(TrainingProgress)
_Said = TypeVar("_Said")


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
        heard = _Heard()
        guard = asyncio.create_task(_guard(child, scratch, limits, on_memory))
        await _all_or_none(
            guard,
            asyncio.create_task(_relay_output(child.output, heard, on_log=on_log, scratch=scratch)),
            asyncio.create_task(
                _relay_channel(
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
    return _read_result(stage, scratch)


def output_path(scratch: Path, relative: str) -> Path:
    """Return the path of a file that a stage says it wrote, after its process has ended.

    Raises:
        StageCrashed: it is not a plain file below `scratch`: missing, a link, a device, or outside.
    """
    os.close(_opened(scratch, relative))
    return scratch / relative


def open_output(scratch: Path, relative: str) -> BinaryIO:
    """Open a file that a stage says it wrote, while its process may still replace it by renaming: this one stays whole.

    Raises:
        StageCrashed: it is not a plain file below `scratch`.
    """
    return os.fdopen(_opened(scratch, relative), "rb")


def _opened(scratch: Path, relative: str) -> int:
    parts = Path(relative).parts
    if not parts or Path(relative).is_absolute() or ".." in parts or "\0" in relative:
        raise _bad_output(relative)
    below = os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | below, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = os.open(parts[-1], os.O_RDONLY | os.O_NONBLOCK | below, dir_fd=folder)
    except OSError as error:
        raise _bad_output(relative) from error
    finally:
        os.close(folder)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # none: it was replaced meanwhile
        os.close(file)
        raise _bad_output(relative)
    return file


def _bad_output(relative: str) -> StageCrashed:
    return StageCrashed(f"The stage's output {_printable(relative, 100)!r} is not a plain file of its scratch folder.")


@dataclass(slots=True)
class _Heard:
    """What the child has said so far."""

    failure: JobFailure | None = None
    hint: str = ""


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


def _read_result(stage: str, scratch: Path) -> Any:  # noqa: ANN401 - the record that `STAGES` names
    with open_output(scratch, RESULT) as file:
        text = file.read(MAX_RESULT_BYTES + 1)
    if len(text) > MAX_RESULT_BYTES:
        raise StageCrashed(f"The stage {stage!r} gave a result of more than {MAX_RESULT_BYTES:,} bytes.")
    try:
        return TypeAdapter[Any](STAGES[stage].result).validate_json(json.dumps(_clean(json.loads(text))))
    except (ValueError, RecursionError, InvalidInput) as error:
        raise StageCrashed(f"The stage {stage!r} gave a result that is not its record.") from error


def _clean(claim: object) -> object:
    """Cut every text of a result and make it printable: it ends up in manifests, reports and terminals."""
    if isinstance(claim, str):
        return _printable(claim, MAX_TEXT_CHARS)
    if isinstance(claim, list):
        return [_clean(one) for one in claim]
    if isinstance(claim, dict):
        return {_printable(name, MAX_TEXT_CHARS): _clean(value) for name, value in claim.items()}
    return claim


async def _batches(reader: asyncio.StreamReader) -> AsyncIterator[list[str]]:
    """Read lines as they come, each cut at a limit and made printable; slower than a flood, which then waits."""
    rest = b""
    while chunk := await reader.read(2**16):
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[:MAX_LINE_BYTES]
        if lines:
            yield [line[:MAX_LINE_BYTES].decode(errors="replace") for line in lines]
            await asyncio.sleep(POLL_SECONDS / 4)
    if rest:
        yield [rest.decode(errors="replace")]


async def _relay_output(reader: asyncio.StreamReader, heard: _Heard, *, on_log: OnLog, scratch: Path) -> None:
    lines, size, full = 0, 0, False
    async for batch in _batches(reader):
        for raw in batch:
            line = _without_paths(_printable(raw, MAX_LINE_BYTES), scratch)
            heard.hint = _printable(line.strip(), MAX_HINT_CHARS) or heard.hint
            if full:
                continue
            lines, size = lines + 1, size + len(line)
            full = lines >= MAX_LOG_LINES or size >= MAX_LOG_BYTES
            await on_log("… the rest was not kept" if full else line)


async def _relay_channel(
    reader: asyncio.StreamReader,
    heard: _Heard,
    *,
    on_progress: OnProgress,
    on_training: OnTraining | None,
    on_checkpoint: OnCheckpoint | None,
) -> None:
    async for batch in _batches(reader):
        messages = [message for line in batch if (message := _message(line)) is not None]
        heard.failure = heard.failure or next(filter(None, map(_reported, messages)), None)
        if (progress := _last(_progress, messages)) is not None:
            await on_progress(*progress)
        if on_training is not None and (training := _last(_training, messages)) is not None:
            await on_training(training)
        if on_checkpoint is not None and (step := _last(_checkpoint, messages)) is not None:
            await on_checkpoint(step)


def _last(read: Callable[[dict[str, object]], _Said | None], messages: list[dict[str, object]]) -> _Said | None:
    """Return what the last of the messages that says such a thing says."""
    return next((said for message in reversed(messages) if (said := read(message)) is not None), None)


def _message(line: str) -> dict[str, object] | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _reported(message: dict[str, object]) -> JobFailure | None:
    code, text = message.get("code"), message.get("message")
    if not isinstance(code, str) or not isinstance(text, str):
        return None
    failure = job_failure(code, _printable(text, MAX_MESSAGE_CHARS))
    return StageCrashed(failure.message) if isinstance(failure, (WorkerLost, InternalFailure)) else failure


def _progress(message: dict[str, object]) -> tuple[float, str] | None:
    share, step = message.get("progress"), message.get("step")
    if not isinstance(share, (int, float)) or not isinstance(step, str) or not 0 <= share <= 1:
        return None
    return float(share), _printable(step, MAX_STEP_CHARS)


def _training(message: dict[str, object]) -> TrainingProgress | None:
    try:
        return _TRAINING.validate_json(json.dumps(message.get("training")), strict=True)
    except ValidationError:
        return None


def _checkpoint(message: dict[str, object]) -> int | None:
    step = message.get("checkpoint")
    return step if type(step) is int and 0 <= step <= MOST_STEPS else None


def _printable(text: str, most: int) -> str:
    kept = "".join(char if char.isprintable() else " " for char in text[: most + 1])
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def _without_paths(line: str, scratch: Path) -> str:
    """Say `…/file.py` for a file of this machine: a user may read the log."""
    for folder in (str(scratch), sys.prefix, sys.base_prefix, *(str(Path(path).parent) for path in workers.__path__)):
        line = line.replace(f"{folder}/", "…/")
    return line
