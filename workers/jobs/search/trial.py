"""One trial: a candidate made, timed beside float32, weighed and scored, on its artifact. Its failure fails no job."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from app.domain.datasets import DatasetManifest
from app.domain.errors import (
    DatasetUnfit,
    DoesNotFit,
    JobFailure,
    OutOfDisk,
    OutOfMemory,
    OutOfTime,
    SandboxUnavailable,
    StageCrashed,
    ToolchainFailed,
)
from app.domain.evidence import MetricScore
from app.domain.recipes import Single
from app.domain.recipes.summary import summary
from app.domain.search import StoredTrial, Trial
from app.domain.training import Training
from app.domain.variants import FLOAT32, Execution
from app.domain.verdicts import default_metric, require_metric
from workers.jobs import refusals
from workers.jobs.bench import Bench, Result
from workers.jobs.files import bring_rows
from workers.jobs.making import make
from workers.jobs.search.candidates import key_of
from workers.jobs.search.forecast import TRIAL_SECONDS
from workers.jobs.search.plan import Plan
from workers.jobs.transforming import Made, bring_float32, put_aside
from workers.outputs import output_path
from workers.stage_records.measuring import Form, ScoreResult, ScoreSpec, TimeResult, TimeSpec, WeighResult, WeighSpec

CANDIDATE = "candidate"
"""What a trial's form is called beside float32."""

_LONGEST_STEP = 100

_PASSING = (DoesNotFit, OutOfDisk, OutOfMemory, OutOfTime, SandboxUnavailable, StageCrashed)
"""What fails a trial because of the machine or the hour: a later attempt may have more of either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """How one trial is run and shown.

    Attributes:
        shown: what the job says meanwhile.
        seconds: how long it may take.
        until: the job's percentage at its end.
    """

    shown: str
    seconds: float
    until: float


def place_of(key: str) -> str:
    """Return where a trial's artifact lies in the scratch folder."""
    return f"made/{key}.onnx"


def words(number: int, recipe: Single) -> str:
    """Say which trial this is."""
    return f"trial {number}: {summary(recipe)}"[:_LONGEST_STEP]


async def run_trial(bench: Bench, plan: Plan, recipe: Single, turn: Turn) -> tuple[StoredTrial, JobFailure | None]:
    """Make and measure a candidate and keep it in the store; return it, and why it failed if it did.

    Raises:
        DatasetUnfit: the rows cannot score, whatever the candidate.
    """
    began = time.monotonic()
    failure: JobFailure | None = None
    async with bench.step(turn.shown, until=turn.until):
        try:
            stored = await _Run(bench, plan, turn).measured(recipe)
        except (DatasetUnfit, SandboxUnavailable):
            raise
        except JobFailure as error:
            failure = error
            await bench.log(f"{turn.shown} failed: {error.message}")
            failed = Trial(key=key_of(recipe), recipe=recipe, failure=error.message)
            stored = StoredTrial(trial=failed, finished_at=datetime.now(UTC), libraries={})
        stored = replace(stored, trial=replace(stored.trial, seconds=round(time.monotonic() - began, 1)))
        await _keep(bench, plan, stored, failure)
    return stored, failure


def metric_among(scores: tuple[MetricScore, ...], wanted: str | None, *, dataset: DatasetManifest) -> MetricScore:
    """Return the score that the budget is read in.

    Args:
        wanted: the budget's metric, or that of the trials; None takes the first that the rows can give.
        dataset: what the rows are from.

    Raises:
        DatasetUnfit: the rows do not give it.
    """
    by_name = {score.name: score for score in scores}
    if wanted is not None:
        require_metric(wanted, by_name, dataset=dataset.name, labels=dataset.label_kind)
        return by_name[wanted]
    score = default_metric(scores)
    if score is None:
        raise DatasetUnfit(
            "No metric fits the model's outputs, so a search has nothing to choose by: quantize it once."
        )
    return score


class _Run:
    """The stages of one trial, which share its time."""

    def __init__(self, bench: Bench, plan: Plan, turn: Turn) -> None:
        self._bench, self._plan, self._turn = bench, plan, turn
        self._began, self._from = time.monotonic(), bench.job.percent
        self._signature = plan.order.float32.signature

    async def measured(self, recipe: Single) -> StoredTrial:
        """Make, time, weigh and score.

        Raises:
            JobFailure: the candidate is none.
        """
        made = await self._make(recipe)
        forms = await self._forms(made)
        timed = await self._stage("time", _time_spec(forms, self._plan), gives=TimeResult, share=0.7)
        kernels = timed.kernels[CANDIDATE]
        _raise(refusals.without_int8(recipe, kernels))
        weigh = WeighSpec(form=forms[1], signature=self._signature)
        weighed = await self._stage("weigh", weigh, gives=WeighResult, share=0.8)
        scored = await self._score(forms)
        wanted, dataset = self._plan.request.budget.metric, self._plan.selection.dataset
        metric, latency = metric_among(scored.metrics, wanted, dataset=dataset), timed.latency[CANDIDATE]
        trial = Trial(
            key=key_of(recipe),
            recipe=recipe,
            artifact_sha256=made.artifact.sha256,
            execution=made.result.execution,
            size_bytes=made.artifact.size_bytes,
            latency_ms=latency.p50_ms,
            speedup=latency.speedup,
            memory_bytes=weighed.memory.added_bytes,
            score=metric.measured[CANDIDATE].value,
            drop=metric.drop,
            noise=max(0.0, 1 - scored.fidelity[CANDIDATE].cosine),
            fallbacks=timed.receipt.fallbacks if timed.receipt else (),
        )
        return StoredTrial(
            trial=trial,
            finished_at=datetime.now(UTC),
            libraries=made.result.libraries,
            metric=metric.name,
            notes=made.result.notes,
            receipt=timed.receipt,
            microseconds=sum(layer.microseconds for layer in kernels.layers),
            training=training_of(made),
        )

    async def _make(self, recipe: Single) -> Made:
        try:
            made = await make(
                self._bench,
                self._plan.order,
                recipe,
                until=self._percent(0.5),
                shown=self._turn.shown,
                seconds=self._seconds(),
            )
        except DatasetUnfit as error:  # rows that cannot calibrate may well score another candidate
            raise ToolchainFailed(error.message) from error
        _raise(refusals.larger(made.artifact, self._plan.order.float32.artifact, name=recipe.default_name))
        return put_aside(self._bench, made, name=key_of(recipe))

    async def _forms(self, made: Made) -> tuple[Form, Form]:
        parent = await bring_float32(self._bench, self._plan.order)
        return (
            Form(name=FLOAT32, artifact=parent, execution=Execution()),
            Form(name=CANDIDATE, artifact=made.path, execution=made.result.execution),
        )

    async def _score(self, forms: tuple[Form, Form]) -> ScoreResult:
        chosen = self._plan.selection
        spec = ScoreSpec(
            forms=forms,
            signature=self._signature,
            evaluation=await bring_rows(self._bench, chosen, preprocessing=self._plan.order.model.preprocessing),
            classes=chosen.dataset.classes,
        )
        return await self._stage("score", spec, gives=ScoreResult, share=1.0)

    async def _stage(self, stage: str, spec: object, *, gives: type[Result], share: float) -> Result:
        until, shown = self._percent(share), self._turn.shown
        return await self._bench.stage(stage, spec, gives=gives, until=until, shown=shown, seconds=self._seconds())

    def _percent(self, share: float) -> float:
        return self._from + share * (self._turn.until - self._from)

    def _seconds(self) -> float:
        return max(1.0, self._turn.seconds - (time.monotonic() - self._began))


def _time_spec(forms: tuple[Form, Form], plan: Plan) -> TimeSpec:
    """Time one row per call only: a ratio to choose finalists by."""
    runs = plan.load.runs(TRIAL_SECONDS)
    return TimeSpec(forms=forms, signature=plan.order.float32.signature, runs=runs, batch_size=1)


def _raise(failure: JobFailure | None) -> None:
    if failure is not None:
        raise failure


def training_of(made: Made) -> Training | None:
    """Return a report's chapter on the training of a trial; None of one that was not trained."""
    trained = made.trained
    if trained is None:
        return None
    return Training(
        outcome=trained.outcome,
        rows=trained.rows,
        held_out=trained.held_out,
        returned="trained",
        choice="The search chose it among its trials, the one that it began from among them.",
    )


def lasting(failure: JobFailure | None) -> bool:
    """Whether a trial would end in the same way for whoever tries it again."""
    return not isinstance(failure, _PASSING)


async def _keep(bench: Bench, plan: Plan, stored: StoredTrial, failure: JobFailure | None) -> None:
    if not lasting(failure):
        return
    if stored.trial.failure is not None:
        await plan.trials.keep(stored, artifact=None)
        return
    with output_path(bench.scratch, place_of(stored.trial.key)).open("rb") as file:
        await plan.trials.keep(stored, artifact=file)
