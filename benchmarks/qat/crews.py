"""Two processes against one, with every compression of their gradients: time, bytes, and whether the model is the
same."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from app.domain.recipes import Qat
from app.domain.recipes.qat import Compression
from benchmarks.qat.answers import Classes, integers_of
from benchmarks.qat.arithmetic import equal_share, largest_difference, pairs_of
from benchmarks.qat.journal import Crewed
from benchmarks.qat.runs import Made, Runs
from workers.stage_records.training import CHECKPOINT_OUTPUT, TrainResult

ALONE = "one process"
CREWS: Mapping[str, tuple[int, Compression]] = {
    ALONE: (1, "none"),
    "two, none": (2, "none"),
    "two, fp16": (2, "fp16"),
    "two, powersgd": (2, "powersgd"),
    "two, int8": (2, "int8"),
}

_LAST = "module."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """What a training left: its numbers after the last step, and its artifact."""

    result: TrainResult
    numbers: dict[str, NDArray[np.generic]]
    integers: dict[str, NDArray[np.generic]]
    classes: Classes


def measure_crews(runs: Runs, recipe: Qat, *, name: str) -> dict[str, Crewed]:
    """Train the same with every crew, from the same start."""
    starts = runs.starts(recipe)
    ended = {
        crew: _trained(
            runs, replace(recipe, processes=processes, compression=compression), starts, name=f"{name}, {crew}"
        )
        for crew, (processes, compression) in CREWS.items()
    }
    return {crew: _crewed(runs, each, alone=ended[ALONE]) for crew, each in ended.items()}


def _trained(runs: Runs, recipe: Qat, starts: dict[str, Made], *, name: str) -> _Ended:
    result, made = runs.train(recipe, starts, name=name)
    return _Ended(
        result=result,
        numbers=_last_numbers(runs.subject.scratch / CHECKPOINT_OUTPUT),
        integers=integers_of(made.path),
        classes=runs.answers(made.path),
    )


def _last_numbers(checkpoint: Path) -> dict[str, NDArray[np.generic]]:
    return {name: each for name, each in load_file(checkpoint).items() if name.startswith(_LAST)}


def _crewed(runs: Runs, ended: _Ended, *, alone: _Ended) -> Crewed:
    outcome = ended.result.outcome
    return Crewed(
        pairs=pairs_of(runs.right(ended.classes), runs.right(runs.float32)),
        agreement=float((ended.classes == runs.float32).mean()),
        step_seconds=outcome.seconds / max(1, outcome.steps_done),
        best_step=outcome.best_step,
        sent_bytes=outcome.wire.sent_bytes if outcome.wire else None,
        plain_bytes=outcome.wire.plain_bytes if outcome.wire else None,
        apart=largest_difference(alone.numbers, ended.numbers),
        equal=equal_share(alone.integers, ended.integers),
        same=float((ended.classes == alone.classes).mean()),
    )
