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
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.domain.errors import (
    DatasetUnfit,
    InvalidInput,
    JobFailure,
    OutOfDisk,
    OutOfMemory,
    UploadUnreadable,
)
from workers import confinement, lifeline

if TYPE_CHECKING:
    from app.domain.training import TrainingProgress

RESULT = "result.json"
CHANNEL = 3
_DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# What the libraries say when an allocation fails, in place of MemoryError.
_MEMORY_WORDS = ("can't allocate memory", "bad allocation", "bad_alloc", "Failed to allocate memory", "out of memory")
_READS_MODELS = ("convert", "verify")


def main(arguments: list[str]) -> int:
    """Run one stage; 0 if its result is written, 1 if a failure was reported, 2 if something unexpected happened."""
    stage, parent, channel, memory, disk, seconds = arguments
    lifeline.die_with(int(parent))
    keep_only_channel(int(channel))
    spec = sys.stdin.buffer.read()
    close_input()
    scratch = Path.cwd()
    confinement.confine(scratch, memory_bytes=int(memory), scratch_bytes=int(disk), seconds=float(seconds))
    try:
        (scratch / RESULT).write_bytes(carry_out(stage, spec, scratch))
    except Exception as error:  # noqa: BLE001 - the job's child: the boundary for whatever a stage may raise
        traceback.print_exc()
        return _report(stage, error)
    return 0


def carry_out(stage: str, spec: bytes, scratch: Path) -> bytes:
    """Run a stage's function on its record, both as JSON; return its result."""
    from pydantic import TypeAdapter  # noqa: PLC0415 - imported in the sandbox

    from workers.stages import STAGES  # noqa: PLC0415

    entry = STAGES[stage]
    module, function = entry.function.split(":")
    run = getattr(import_module(module), function)
    result = run(TypeAdapter(entry.spec).validate_json(spec), scratch, Teller())
    return TypeAdapter(entry.result).dump_json(result)


class Teller:
    """What a stage is given to say how far it is: a `Progress`, and a `TrainingTeller`."""

    def __call__(self, share: float, step: str) -> None:
        """Say which share of the work is done, and what is being done."""
        send({"progress": share if isfinite(share) else None, "step": step})

    def tell(self, progress: "TrainingProgress") -> None:
        """Say where training stands; a number that is none becomes null."""
        from pydantic import TypeAdapter  # noqa: PLC0415 - imported in the sandbox

        send({"training": json.loads(TypeAdapter(type(progress)).dump_json(progress))})

    def checkpoint(self, step: int) -> None:
        """Say that the state after this step lies in the scratch folder."""
        send({"checkpoint": step})


def _report(stage: str, error: Exception) -> int:
    failure = failure_of(stage, error)
    if failure is None:
        return 2
    send({"code": failure.code, "message": failure.message})
    return 1


def failure_of(stage: str, error: Exception) -> JobFailure | None:
    """Return what to report of an exception; None if it is a bug, or the death of somebody else."""
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


def send(message: dict[str, Any]) -> None:
    """Write a message to the channel."""
    os.write(CHANNEL, json.dumps(message).encode() + b"\n")


def keep_only_channel(channel: int) -> None:
    """Put the channel where `send` expects it, and close all else but the standard streams."""
    if channel != CHANNEL:
        os.dup2(channel, CHANNEL, inheritable=False)
    os.closerange(CHANNEL + 1, 2**16)


def close_input() -> None:
    """Leave nothing to read on standard input."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
