"""Stages of a job, one after the other, each in its sandbox as a worker runs it, without the service around them."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from app.domain.errors import JobFailure
from app.domain.recipes import PtqStatic, Qat
from app.domain.recipes.summary import summary
from app.domain.training import TrainingProgress
from benchmarks.qat.answers import Classes, apart, engine_classes, module_classes
from benchmarks.qat.arithmetic import Flags, pairs_of
from benchmarks.qat.journal import Taken, TrainedFacts
from benchmarks.qat.subject import FLOAT32, Subject, source
from workers.limits import Limits
from workers.sandbox import run_stage
from workers.stage_records.common import VARIANT_OUTPUT
from workers.stage_records.making import TransformSpec
from workers.stage_records.training import Start, TrainResult, TrainSpec

LIMITS = Limits(memory_bytes=8 * 2**30, scratch_bytes=8 * 2**30, seconds=4 * 3600)

_TOLD_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An artifact out of the stages' way, and the seconds its stage took."""

    path: Path
    seconds: float


@dataclass(slots=True, kw_only=True)
class _Voice:
    """Says now and then how training goes."""

    name: str
    said_at: float = field(default_factory=time.monotonic)

    async def __call__(self, progress: TrainingProgress) -> None:
        if time.monotonic() - self.said_at >= _TOLD_SECONDS:
            self.said_at = time.monotonic()
            say(f"{self.name}: step {progress.step} of {progress.steps}, {progress.seconds_left:.0f} s left")


class Runs:
    """Makes artifacts of one subject and answers the test rows with them."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._starts: dict[tuple[PtqStatic, tuple[int, ...]], Made] = {}

    def answers(self, artifact: Path) -> Classes:
        """Return what an artifact answers in the engine."""
        return apart(engine_classes, artifact, self.subject.signature, self.subject.test)

    @cached_property
    def float32(self) -> Classes:
        """What float32 answers."""
        return self.answers(self.subject.float32)

    def right(self, classes: Classes) -> Flags:
        """Tell which rows are answered right."""
        found: Flags = classes == np.load(self.subject.labels)
        return found

    def quantized(self, recipe: PtqStatic) -> Taken:
        """Make a post-training quantization and measure it."""
        made = self._start(recipe, self.subject.calibrating(recipe))
        return self._taken(self.answers(made.path), start_seconds=made.seconds)

    def trained(self, recipe: Qat, *, name: str) -> Taken:
        """Make the starts, train the best of them and measure it."""
        starts = self.starts(recipe)
        result, made = self.train(recipe, starts, name=name)
        classes, outcome = self.answers(made.path), result.outcome
        module = apart(module_classes, made.path, self.subject.signature, self.subject.test)
        facts = TrainedFacts(
            start=outcome.start,
            steps=outcome.steps_done,
            best_step=outcome.best_step,
            ended=outcome.ended,
            checked=outcome.checked_rows,
            checked_same=outcome.checked_same,
            module_same=float((module == classes).mean()),
        )
        start_seconds = sum(each.seconds for each in starts.values())
        return self._taken(classes, start_seconds=start_seconds, seconds=made.seconds, trained=facts)

    def starts(self, recipe: Qat) -> dict[str, Made]:
        """Return what training can begin from, by the recipe's summary."""
        rows = self.subject.calibrating(recipe)
        return {summary(start): self._start(start, rows) for start in recipe.starts}

    def train(self, recipe: Qat, starts: dict[str, Made], *, name: str) -> tuple[TrainResult, Made]:
        """Run the stage that trains; what it wrote beside the artifact stays until the next stage runs."""
        training, held_out = (source(rows, labelled=recipe.uses_labels) for rows in self.subject.split(recipe))
        spec = TrainSpec(
            float32=FLOAT32,
            starts=tuple(Start(recipe=words, artifact=self.subject.give(made.path)) for words, made in starts.items()),
            signature=self.subject.signature,
            recipe=recipe,
            training=training,
            held_out=held_out,
            seconds=LIMITS.seconds,
            memory_bytes=LIMITS.memory_bytes,
        )
        result, seconds = self._stage("train", spec, voice=_Voice(name=name))
        assert isinstance(result, TrainResult)
        return result, self._kept(seconds)

    def _start(self, recipe: PtqStatic, rows: tuple[int, ...]) -> Made:
        if (recipe, rows) not in self._starts:
            spec = TransformSpec(
                artifact=FLOAT32,
                signature=self.subject.signature,
                recipe=recipe,
                calibration=source(rows, labelled=False),
            )
            _, seconds = self._stage("transform", spec, voice=_Voice(name=summary(recipe)))
            self._starts[recipe, rows] = self._kept(seconds)
        return self._starts[recipe, rows]

    def _stage(self, stage: str, spec: object, *, voice: _Voice) -> tuple[object, float]:
        self.subject.clear()
        (self.subject.scratch / "out").mkdir()
        logged: list[str] = []
        began = time.monotonic()
        try:
            result = asyncio.run(
                run_stage(
                    stage,
                    spec,
                    scratch=self.subject.scratch,
                    limits=LIMITS,
                    on_progress=_ignore,
                    on_log=_into(logged),
                    on_training=voice,
                )
            )
        except JobFailure:
            say("\n".join(logged[-20:]))
            raise
        seconds = time.monotonic() - began
        say(f"{voice.name}: {stage} took {seconds:.0f} s")
        return result, seconds

    def _kept(self, seconds: float) -> Made:
        name = f"{time.monotonic_ns()}.onnx"
        return Made(path=self.subject.keep(VARIANT_OUTPUT, name=name), seconds=round(seconds, 1))

    def _taken(
        self, classes: Classes, *, start_seconds: float, seconds: float = 0.0, trained: TrainedFacts | None = None
    ) -> Taken:
        return Taken(
            pairs=pairs_of(self.right(classes), self.right(self.float32)),
            agreement=float((classes == self.float32).mean()),
            start_seconds=start_seconds,
            seconds=seconds,
            trained=trained,
        )


def say(words: str) -> None:
    """Tell whoever waits."""
    print(words, file=sys.stderr, flush=True)


async def _ignore(*_: object) -> None:
    return None


def _into(lines: list[str]) -> Callable[[str], Awaitable[None]]:
    async def keep(line: str) -> None:
        lines.append(line)

    return keep
