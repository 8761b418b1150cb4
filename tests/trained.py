"""What a training leaves behind: a report of ResNet-20 with 4-bit weights, and a job in the middle of it."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from app.domain.evidence import DataUse, Interval, MetricScore
from app.domain.jobs import Job, JobKind, JobState
from app.domain.recipes import PtqStatic, Qat
from app.domain.recipes.summary import summary
from app.domain.reports import Proportion, Report
from app.domain.training import (
    PTQ,
    StartScore,
    Training,
    TrainingForecast,
    TrainingOutcome,
    TrainingPoint,
    TrainingProgress,
    WireUse,
)
from tests.reports import VARIANT, full_report

Measured = TypeVar("Measured")
RECIPE = Qat(weight_bits=4, epochs=None, steps=400, processes=2, compression="int8")
PROGRESS = TrainingProgress(
    step=120,
    steps=400,
    loss=0.0312,
    score=0.0288,
    best_score=0.0285,
    learning_rate=8.7e-5,
    rows_per_second=2310.4,
    seconds_left=80.2,
)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
_ROWS = DataUse(dataset="cifar-train:1", rows=1800, source="given", seed=0, sha256="1a" * 32)


def training_job(progress: TrainingProgress = PROGRESS) -> Job:
    """Return a job that trains."""
    return Job(
        id="0" * 32,
        kind=JobKind.QUANTIZE,
        created_at=NOW,
        model="m:1",
        training="cifar-train:1",
        recipe=RECIPE,
        state=JobState.RUNNING,
        percent=45.0,
        attempt=1,
        step=f"training: step {progress.step} of {progress.steps}",
        training_progress=progress,
    )


def trained_report() -> Report:
    """Return a report with the chapter on training and the form `ptq`, and nothing of a search."""
    report = full_report()
    fidelity = report.fidelity[VARIANT]
    ptq = replace(fidelity, agreement=_proportion(9341))
    assert report.accuracy is not None
    accuracy = replace(report.accuracy, measured=_beside(report.accuracy.measured, _proportion(7712)))
    return replace(
        report,
        recipe=RECIPE,
        search=None,
        accuracy=accuracy,
        fidelity={PTQ: ptq, VARIANT: fidelity},
        metrics=tuple(_with_start(metric) for metric in report.metrics),
        latency=_beside(report.latency, replace(report.latency[VARIANT], speedup=2.6)),
        memory=_beside(report.memory, report.memory[VARIANT]),
        training=training(),
    ).renamed("w4a8")


def training() -> Training:
    """Return the chapter."""
    return Training(
        outcome=_outcome(),
        rows=_ROWS,
        held_out=replace(_ROWS, rows=200, source="held_out"),
        returned="trained",
        choice="The trained artifact agrees with float32 on 98.12 % of 10,000 rows, the start on 93.41 %.",
    )


def _outcome() -> TrainingOutcome:
    nearest, learned = (PtqStatic(weight_bits=4, rounding=rounding) for rounding in ("nearest", "adaround"))
    return TrainingOutcome(
        start=summary(learned),
        starts=(
            StartScore(recipe=summary(nearest), score=0.31, agreement=0.905),
            StartScore(recipe=summary(learned), score=0.12, agreement=0.935),
        ),
        teacher="float32",
        parameters=272_474,
        points=tuple(_point(step) for step in range(0, 401, 4)),
        steps=400,
        steps_done=400,
        best_step=360,
        ended="complete",
        reason=None,
        seconds=173.0,
        rows_per_second=2310.0,
        processes=2,
        resumed_at=(150,),
        checked_rows=200,
        checked_same=199,
        forecast=TrainingForecast(
            seconds=160.0, memory_bytes=700_000_000, actual_seconds=173.0, actual_memory_bytes=655_000_000
        ),
        wire=WireUse(hook="int8", plain_bytes=1_089_896, sent_bytes=273_900),
    )


def _point(step: int) -> TrainingPoint:
    falling = 0.02 + 0.1 * math.exp(-step / 90)
    looked = step % 20 == 0
    return TrainingPoint(
        step=step,
        loss=None if step == 0 else falling * (1 + 0.12 * math.sin(step)),
        learning_rate=1e-4 * min(1.0, step / 20) * 0.5 * (1 + math.cos(math.pi * step / 400)),
        score=falling + (0.002 if step > 360 else 0.0) if looked else None,
        agreement=0.985 - 0.05 * math.exp(-step / 90) if looked else None,
    )


def _proportion(count: int, rows: int = 10_000) -> Proportion:
    value = count / rows
    half = 1.96 * math.sqrt(value * (1 - value) / rows)
    return Proportion(value=value, low=value - half, high=value + half, count=count, rows=rows)


def _with_start(metric: MetricScore) -> MetricScore:
    variant = metric.measured[VARIANT]
    less = 0.0379  # of accuracy: 80.91 % to 77.12 %
    start = Interval(value=variant.value - less, low=variant.low - less, high=variant.high - less)
    return replace(metric, measured=_beside(metric.measured, start))


def _beside(measured: dict[str, Measured], start: Measured) -> dict[str, Measured]:
    """Add the form `ptq`, before the variant as jobs do."""
    forms = {**measured, PTQ: start}
    forms[VARIANT] = forms.pop(VARIANT)
    return forms
