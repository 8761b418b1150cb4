"""What a stage says while it runs, and what it leaves when it ends: claims, of which the form is checked here."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from app.domain.errors import InternalFailure, InvalidInput, JobFailure, StageCrashed, WorkerLost, job_failure
from app.domain.training import MOST_STEPS, TrainingProgress
from workers.outputs import open_output
from workers.stages import STAGES
from workers.wording import printable, without_paths

OnProgress = Callable[[float, str], Awaitable[None]]
OnLog = Callable[[str], Awaitable[None]]
OnTraining = Callable[[TrainingProgress], Awaitable[None]]
OnCheckpoint = Callable[[int], Awaitable[None]]

RESULT = "result.json"
MAX_RESULT_BYTES = 4 * 2**20
MAX_LOG_BYTES = 2**20
MAX_LOG_LINES = 10_000
MAX_LINE_BYTES = 4_000
MAX_HINT_CHARS = 200
MAX_MESSAGE_CHARS = 600
MAX_STEP_CHARS = 100
MAX_TEXT_CHARS = 256
PAUSE_SECONDS = 0.025
"""Between two batches of lines: a flood waits."""

_TRAINING = TypeAdapter(TrainingProgress)
_Said = TypeVar("_Said")


@dataclass(slots=True)
class Heard:
    """What the child has said so far."""

    failure: JobFailure | None = None
    hint: str = ""


def read_result(stage: str, scratch: Path) -> Any:  # noqa: ANN401 - the record that `STAGES` names
    """Return the record that a stage has left, after its process has ended.

    Raises:
        StageCrashed: there is none, or it is not what `STAGES` names.
    """
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
        return printable(claim, MAX_TEXT_CHARS)
    if isinstance(claim, list):
        return [_clean(one) for one in claim]
    if isinstance(claim, dict):
        return {printable(name, MAX_TEXT_CHARS): _clean(value) for name, value in claim.items()}
    return claim


async def _batches(reader: asyncio.StreamReader) -> AsyncIterator[list[str]]:
    """Read lines as they come, each cut at a limit and made printable; slower than a flood, which then waits."""
    rest = b""
    while chunk := await reader.read(2**16):
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[:MAX_LINE_BYTES]
        if lines:
            yield [line[:MAX_LINE_BYTES].decode(errors="replace") for line in lines]
            await asyncio.sleep(PAUSE_SECONDS)
    if rest:
        yield [rest.decode(errors="replace")]


async def relay_output(reader: asyncio.StreamReader, heard: Heard, *, on_log: OnLog, scratch: Path) -> None:
    """Pass on what a stage prints, up to a limit, until it has ended."""
    lines, size, full = 0, 0, False
    async for batch in _batches(reader):
        for raw in batch:
            line = without_paths(printable(raw, MAX_LINE_BYTES), scratch)
            heard.hint = printable(line.strip(), MAX_HINT_CHARS) or heard.hint
            if full:
                continue
            lines, size = lines + 1, size + len(line)
            full = lines >= MAX_LOG_LINES or size >= MAX_LOG_BYTES
            await on_log("… the rest was not kept" if full else line)


async def relay_channel(
    reader: asyncio.StreamReader,
    heard: Heard,
    *,
    on_progress: OnProgress,
    on_training: OnTraining | None,
    on_checkpoint: OnCheckpoint | None,
) -> None:
    """Pass on what a stage tells the job, until it has ended: the newest of each kind, and its first failure."""
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
    failure = job_failure(code, printable(text, MAX_MESSAGE_CHARS))
    return StageCrashed(failure.message) if isinstance(failure, (WorkerLost, InternalFailure)) else failure


def _progress(message: dict[str, object]) -> tuple[float, str] | None:
    share, step = message.get("progress"), message.get("step")
    if not isinstance(share, (int, float)) or not isinstance(step, str) or not 0 <= share <= 1:
        return None
    return float(share), printable(step, MAX_STEP_CHARS)


def _training(message: dict[str, object]) -> TrainingProgress | None:
    try:
        return _TRAINING.validate_json(json.dumps(message.get("training")), strict=True)
    except ValidationError:
        return None


def _checkpoint(message: dict[str, object]) -> int | None:
    step = message.get("checkpoint")
    return step if type(step) is int and 0 <= step <= MOST_STEPS else None
