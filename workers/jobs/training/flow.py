"""From starts to a trained graph: what the stage is given, what it leaves in the store, and what is taken of it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial

from app.catalogue.checkpoints import Checkpoints
from app.domain.errors import StageCrashed
from app.domain.recipes import Qat
from app.domain.training import MOST_POINTS, TrainingOutcome
from workers.claims import OnCheckpoint
from workers.jobs.bench import Bench
from workers.jobs.files import bring, bring_rows, inspect
from workers.jobs.lookup import Order
from workers.jobs.patience import taken_over
from workers.jobs.rows import Chosen
from workers.jobs.search.forecast import Load
from workers.jobs.training.curves import thinned
from workers.jobs.training.keeping import Keeper
from workers.jobs.training.rows import part
from workers.jobs.training.starts import keep_starts, kept_starts, make_starts
from workers.jobs.training.stopping import stopped_on_request
from workers.jobs.transforming import MOST_CLAIMED_NOTES, Made, Trained, bring_float32
from workers.stage_records.common import VARIANT_OUTPUT
from workers.stage_records.making import TransformResult
from workers.stage_records.training import CHECKPOINT_OUTPUT, STOP_INPUT, Start, Teacher, TrainResult, TrainSpec

_CHECKPOINT_INPUT = "in/checkpoint.safetensors"
_STARTS_SHARE = 0.25
_FORMS, _MOST_MEASURING_SHARE = 2, 0.4
"""What training leaves to measuring what came of it: the final measuring of a search so many times, or that share of
the time if it is less."""
_MARGIN, _MARGIN_SECONDS = 0.1, 30.0
"""What is left to a stage for ending by itself, and for the artifact, before it is stopped: that share of its time, and
no less than those seconds where it has as many twice."""


async def train(
    bench: Bench, order: Order, recipe: Qat, *, until: float, shown: str | None = None, seconds: float | None = None
) -> Made:
    """Make the starts, or take over those of an earlier attempt, and train.

    A job's own training keeps its states in the store and ends when asked to. A trial of a search, whose order has no
    rows that train, trains on rows that calibrate and keeps nothing: a lost trial is made again.

    Args:
        shown, seconds: as of `Bench.stage`.

    Raises:
        JobFailure: it cannot be carried out.
    """
    began, ends = bench.job.percent, bench.seconds + (seconds if seconds is not None else bench.seconds_left)
    checkpoints = (
        Checkpoints(bench.workshop.store, bench.job.id, attempt=bench.job.attempt)
        if order.training is not None
        else None
    )
    ready = began + _STARTS_SHARE * (until - began)
    async with _named(bench, "making what training begins from", until=ready, shown=shown):
        starts = await kept_starts(bench, checkpoints) if checkpoints else None
        if starts is None:
            starts = await make_starts(bench, order, recipe, until=ready, shown=shown, seconds=seconds)
            if checkpoints:
                await keep_starts(bench, checkpoints, starts)
    async with _named(bench, "training", until=until, shown=shown):
        state = await _checkpoint(bench, checkpoints, starts) if checkpoints else None
        spec = await _spec(bench, order, recipe, starts, state=state)
        _clear(bench)
        limit = await _seconds_to_train(bench, order, ends - bench.seconds)
        spec = replace(spec, seconds=_seconds_before(limit))
        async with _accompanied(bench, checkpoints, starts) as on_checkpoint:
            result = await bench.stage(
                "train",
                spec,
                gives=TrainResult,
                until=until,
                shown=shown,
                seconds=limit,
                on_checkpoint=on_checkpoint,
            )
    return _made(bench, result, list(starts.values()), *_rows(order, recipe))


async def _spec(bench: Bench, order: Order, recipe: Qat, starts: dict[str, Made], *, state: str | None) -> TrainSpec:
    """Bring all that the stage reads; how long it may take is known once that is done."""
    training, held_out = _rows(order, recipe)
    return TrainSpec(
        float32=await bring_float32(bench, order),
        starts=tuple(Start(recipe=name, artifact=made.path) for name, made in starts.items()),
        signature=order.float32.signature,
        recipe=recipe,
        training=await bring_rows(bench, training, preprocessing=order.model.preprocessing),
        held_out=await bring_rows(bench, held_out, preprocessing=order.model.preprocessing),
        classes=training.dataset.classes,
        values=training.dataset.label_kind == "values",
        teacher=await _teacher(bench, order),
        checkpoint=state,
        seconds=0.0,
        memory_bytes=bench.workshop.limits.memory_bytes,
    )


def _rows(order: Order, recipe: Qat) -> tuple[Chosen, Chosen]:
    """Return the rows that train and those held out; of a search's order both are of those that calibrate."""
    if order.training is not None and order.held_out is not None:
        return order.training, order.held_out
    if order.calibration is None:
        raise ValueError("a training without rows was accepted")
    return part(order.calibration, recipe)


async def _teacher(bench: Bench, order: Order) -> Teacher | None:
    teacher = order.teacher
    if teacher is None:
        return None
    path = bench.workshop.variants.artifact_path(teacher)
    artifact = await bring(bench, path, name="teacher.onnx", sha256=teacher.artifact.sha256)
    return Teacher(name=f"{teacher.model}:{teacher.version}", artifact=artifact, signature=teacher.signature)


async def _checkpoint(bench: Bench, checkpoints: Checkpoints, starts: dict[str, Made]) -> str | None:
    """Bring the state to go on from, if an earlier attempt left one.

    Raises:
        AttemptLost: the store is away.
    """
    to = bench.scratch / _CHECKPOINT_INPUT
    state = await taken_over(partial(checkpoints.fetch, to, starts=_names(starts)))
    if state is None:
        return None
    await bench.log(f"training goes on from the checkpoint of step {state.step}")
    return _CHECKPOINT_INPUT


async def _seconds_to_train(bench: Bench, order: Order, left: float) -> float:
    """Return how much of the time left training may take."""
    report = await bench.workshop.variants.report(order.float32)
    load = Load.of(report, calibration=0, selection=0, final=len(order.evaluation.rows))
    return max(1.0, left - min(_FORMS * load.final_seconds, _MOST_MEASURING_SHARE * left))


def _seconds_before(limit: float) -> float:
    """Return after how long a stage is to end by itself that is stopped at a limit."""
    return limit - max(_MARGIN * limit, min(_MARGIN_SECONDS, limit / 2))


def _clear(bench: Bench) -> None:
    """Remove what an earlier training of this attempt left: the stage would take it for its own."""
    for left in (STOP_INPUT, CHECKPOINT_OUTPUT):
        (bench.scratch / left).unlink(missing_ok=True)


@asynccontextmanager
async def _accompanied(
    bench: Bench, checkpoints: Checkpoints | None, starts: dict[str, Made]
) -> AsyncIterator[OnCheckpoint | None]:
    """Store checkpoints and listen for requests while a job's own training runs."""
    if checkpoints is None:
        yield None
        return
    async with Keeper(bench, checkpoints, starts=_names(starts)) as keeper, stopped_on_request(bench):
        yield keeper.take


def _made(bench: Bench, result: TrainResult, starts: list[Made], training: Chosen, held_out: Chosen) -> Made:
    if not 0 <= result.start < len(starts):
        raise StageCrashed(f"The stage 'train' says that it began from start {result.start}, and there is none.")
    start = starts[result.start]
    made = TransformResult(
        artifact=VARIANT_OUTPUT,
        execution=start.result.execution,
        libraries={**start.result.libraries, **result.libraries},
        notes=(*start.result.notes, *result.notes[:MOST_CLAIMED_NOTES]),
    )
    trained = Trained(outcome=_bounded(result.outcome), start=start, rows=training.use, held_out=held_out.use)
    return Made(path=result.artifact, artifact=inspect(bench, result.artifact), result=made, trained=trained)


def _bounded(outcome: TrainingOutcome) -> TrainingOutcome:
    points = thinned(outcome.points, best_step=outcome.best_step, most=MOST_POINTS)
    return replace(outcome, points=points, starts=outcome.starts[:MOST_POINTS])


def _names(starts: dict[str, Made]) -> tuple[str, ...]:
    return tuple(made.artifact.sha256 for made in starts.values())


def _named(bench: Bench, name: str, *, until: float, shown: str | None) -> AbstractAsyncContextManager[None]:
    return nullcontext() if shown is not None else bench.step(name, until=until)
