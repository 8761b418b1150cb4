"""`python -m workers.stage_child`: the process one stage runs in. Confines itself first, imports and reads afterwards.

Arguments: stage, parent's process id, descriptor of the channel, memory_bytes, scratch_bytes, seconds. The spec comes
as JSON on standard input; progress and failures leave as JSON lines on the channel, the result in `result.json`.
"""

import errno
import json
import os
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from app.domain.errors import (
    DatasetUnfit,
    InvalidInput,
    JobFailure,
    OutOfDisk,
    OutOfMemory,
    UploadUnreadable,
)
from workers import confinement, lifeline

RESULT = "result.json"
_CHANNEL = 3
_DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# What the libraries say when an allocation fails, in place of MemoryError.
_MEMORY_WORDS = ("can't allocate memory", "bad allocation", "bad_alloc", "Failed to allocate memory", "out of memory")
_READS_MODELS = ("convert", "verify")


def main(arguments: list[str]) -> int:
    """Run one stage; 0 if its result is written, 1 if a failure was reported, 2 if something unexpected happened."""
    stage, parent, channel, memory, disk, seconds = arguments
    lifeline.die_with(int(parent))
    _keep_only_channel(int(channel))
    spec = sys.stdin.buffer.read()
    _close_input()
    scratch = Path.cwd()
    confinement.confine(scratch, memory_bytes=int(memory), scratch_bytes=int(disk), seconds=float(seconds))
    try:
        _run(stage, spec, scratch)
    except Exception as error:  # noqa: BLE001 - the job's child: the boundary for whatever a stage may raise
        traceback.print_exc()
        return _report(stage, error)
    return 0


def _run(stage: str, spec: bytes, scratch: Path) -> None:
    from pydantic import TypeAdapter  # noqa: PLC0415 - imported in the sandbox

    from workers.stages import STAGES  # noqa: PLC0415

    entry = STAGES[stage]
    module, function = entry.function.split(":")
    run = getattr(import_module(module), function)
    result = run(TypeAdapter(entry.spec).validate_json(spec), scratch, _progress)
    (scratch / RESULT).write_bytes(TypeAdapter(entry.result).dump_json(result))


def _progress(share: float, step: str) -> None:
    _send({"progress": share, "step": step})


def _report(stage: str, error: Exception) -> int:
    failure = _failure(stage, error)
    if failure is None:
        return 2
    _send({"code": failure.code, "message": failure.message})
    return 1


def _failure(stage: str, error: Exception) -> JobFailure | None:
    # A reader says "cannot be loaded" of a file that it had no memory for: the cause beneath counts.
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
            return OutOfDisk("The stage ran out of disk.")
        if isinstance(cause, MemoryError) or any(word in str(cause) for word in _MEMORY_WORDS):
            return OutOfMemory("The stage ran out of memory.")
    if isinstance(error, InvalidInput):
        return (UploadUnreadable if stage in _READS_MODELS else DatasetUnfit)(error.message)
    return error if isinstance(error, JobFailure) else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _send(message: dict[str, Any]) -> None:
    os.write(_CHANNEL, json.dumps(message).encode() + b"\n")


def _keep_only_channel(channel: int) -> None:
    if channel != _CHANNEL:
        os.dup2(channel, _CHANNEL, inheritable=False)
    os.closerange(_CHANNEL + 1, 2**16)


def _close_input() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
