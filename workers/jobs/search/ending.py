"""How a search ends: finalists timed side by side, one proven on the final rows and published, or nothing is."""

from dataclasses import dataclass, replace

from app.domain.errors import BudgetMissed, DatasetUnfit, JobFailure, OutOfTime, ToolchainFailed
from app.domain.recipes import Qat
from app.domain.reports import Report
from app.domain.search import Search, Trial
from app.domain.training import PTQ
from app.domain.variants import FLOAT32, Execution, Variant
from app.domain.verdicts import judge
from workers.jobs.bench import Bench
from workers.jobs.files import inspect
from workers.jobs.proof import prove
from workers.jobs.publishing import batch_limit, publish, refuse, report_of, variant_of
from workers.jobs.reporting import Evidence
from workers.jobs.search.candidates import key_of
from workers.jobs.search.choice import front, measured, nearest_miss
from workers.jobs.search.forecast import FINAL_SECONDS
from workers.jobs.search.hunt import LAST_PERCENT, Ended, Hunt
from workers.jobs.search.plan import Plan
from workers.jobs.search.reasons import missed, reason
from workers.jobs.search.trial import metric_among, place_of
from workers.jobs.transforming import Made, bring_float32
from workers.stage_records.common import VARIANT_OUTPUT
from workers.stage_records.making import TransformResult
from workers.stage_records.measuring import Form, TimeResult, TimeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proven:
    """A trial, measured in full on the final rows."""

    variant: Variant
    made: Made
    evidence: Evidence
    metric: str


class Ending:
    """What remains to be done once no more candidates are tried."""

    def __init__(self, bench: Bench, plan: Plan, hunt: Hunt, *, ended: Ended) -> None:
        self._bench, self._plan, self._hunt, self._ended = bench, plan, hunt, ended

    async def timed_again(self, finalists: list[Trial]) -> list[Trial]:
        """Time the finalists side by side: ratios hold within one run, and each trial had a run of its own."""
        parent = await bring_float32(self._bench, self._plan.order)
        forms = [await self._form(trial.key, trial) for trial in finalists]
        spec = TimeSpec(
            forms=(Form(name=FLOAT32, artifact=parent, execution=Execution()), *forms),
            signature=self._plan.order.float32.signature,
            runs=self._plan.load.runs(FINAL_SECONDS),
            batch_size=1,
            profiled=False,
        )
        until = LAST_PERCENT + 3
        async with self._bench.step("timing the finalists side by side", until=until):
            timed = await self._bench.stage("time", spec, gives=TimeResult, until=until)
        latency = timed.latency
        again = [
            replace(trial, latency_ms=latency[trial.key].p50_ms, speedup=latency[trial.key].speedup)
            for trial in finalists
        ]
        self._hunt.replace(again)
        return again

    async def published(self, chosen: Trial, finalists: list[Trial]) -> str:
        """Prove the winner on the final rows and publish it; the trials have done their work then.

        Raises:
            ToolchainFailed: it does not run on the final rows.
            JobFailure: nothing can be measured on them.
        """
        proven = await self._proven(chosen)
        speedup = proven.evidence.costs.latency[proven.variant.name].speedup
        tried = measured(self._hunt.trials())
        why = reason(chosen, finalists, tried, metric=proven.metric, speedup=speedup)
        async with self._bench.step("publishing", until=100):
            report = self._report(proven, chosen, why)
            name = await publish(self._bench, proven.variant, report, path=proven.made.path)
            await self._plan.trials.drop()
        return name

    async def nothing_kept(self) -> JobFailure:
        """Prove the nearest miss all the same, keep that with the job, and return why it fails."""
        budget = self._plan.request.budget
        nearest = nearest_miss(measured(self._hunt.trials()), budget)
        try:
            proven = await self._proven(nearest)
        except (DatasetUnfit, ToolchainFailed):  # the final rows cannot score it: what the trials say stays
            why = missed(nearest, budget, metric=self._hunt.done[nearest.key].metric or "")
            return await self.without_proof(BudgetMissed(why))
        why = missed(nearest, budget, metric=proven.metric)
        return await refuse(self._bench, BudgetMissed(why), self._report(proven, nearest, why))

    async def nothing_made(self) -> JobFailure:
        """Keep with the job why every candidate failed, beside what is known of float32; return why it fails."""
        failures = [trial.failure for trial in self._hunt.trials() if trial.failure]
        why = (
            f"No candidate could be made; the last failed so: {failures[-1]}"
            if failures
            else f"No trial ended within {self._plan.request.time_limit_seconds} seconds: raise time_limit_seconds."
        )
        return await self.without_proof(BudgetMissed(why) if failures else OutOfTime(why))

    async def without_proof(self, failure: JobFailure) -> JobFailure:
        """Keep the trials with the job, beside what is known of float32; return the failure."""
        metrics = (self._plan.request.budget.metric, *(stored.metric for stored in self._hunt.done.values()))
        metric = next((name for name in metrics if name), "")
        report = await self._bench.workshop.variants.report(self._plan.order.float32)
        report = replace(report, search=self._search(metric=metric, chosen="", why=failure.message))
        return await refuse(self._bench, failure, report)

    async def _proven(self, trial: Trial) -> _Proven:
        name = self._bench.job.variant or self._plan.request.default_name
        form = await self._form(name, trial)
        made = self._made(trial)
        variant = variant_of(self._bench, self._plan.order, trial.recipe, made, name=name)
        order = self._plan.order if trial.recipe.needs_calibration else replace(self._plan.order, calibration=None)
        evidence = await prove(
            self._bench,
            order,
            form,
            others=await self._start(trial, name=name),
            sense=False,
            selection=self._plan.selection,
            until=97,
        )
        if evidence.failure is not None:
            raise evidence.failure
        scores = evidence.score.metrics if evidence.score else ()
        # what chose it is what it is held to, whatever else these rows could be read in
        wanted = self._plan.request.budget.metric or self._hunt.done[trial.key].metric
        score = metric_among(scores, wanted, dataset=order.evaluation.dataset)
        latency, size = evidence.costs.latency[name].p50_ms, made.artifact.size_bytes
        verdict = judge(self._plan.request.budget, score, latency_ms=latency, size_bytes=size)
        return _Proven(
            variant=replace(variant, max_batch_size=batch_limit(evidence, trial.recipe)),
            made=made,
            evidence=replace(
                evidence,
                sensitivity=self._hunt.sensitivity,
                verdict=verdict,
                training=self._hunt.done[trial.key].training,
            ),
            metric=score.name,
        )

    async def _start(self, trial: Trial, *, name: str) -> tuple[Form, ...]:
        """Return the trial that a trained one began from, to set beside it."""
        recipes = trial.recipe.starts if isinstance(trial.recipe, Qat) and name != PTQ else ()
        done = (self._hunt.done.get(key_of(recipe)) for recipe in recipes)
        starts = measured(stored.trial for stored in done if stored is not None)
        return tuple([await self._form(PTQ, start) for start in starts[:1]])

    def _made(self, trial: Trial) -> Made:
        stored, path = self._hunt.done[trial.key], place_of(trial.key)
        result = TransformResult(
            artifact=VARIANT_OUTPUT,
            execution=trial.execution or Execution(),
            libraries=stored.libraries,
            notes=stored.notes,
        )
        return Made(path=path, artifact=inspect(self._bench, path), result=result)

    def _report(self, proven: _Proven, chosen: Trial, why: str) -> Report:
        found = self._search(metric=proven.metric, chosen=chosen.key, why=why)
        return report_of(proven.variant, replace(proven.evidence, search=found), self._plan.order, proven.made)

    def _search(self, *, metric: str, chosen: str, why: str) -> Search:
        trials = tuple(self._hunt.trials())
        seconds, memory = round(self._bench.seconds, 1), self._bench.peak_bytes
        return Search(
            request=self._plan.request,
            metric=metric,
            selection=self._plan.selection.use,
            forecast=replace(self._plan.forecast, actual_memory_bytes=memory, actual_seconds=seconds),
            trials=trials,
            sensitivity=self._hunt.sensitivity,
            front=front(trials),
            chosen=chosen,
            reason=why,
            ended=self._ended,
        )

    async def _form(self, name: str, trial: Trial) -> Form:
        return Form(name=name, artifact=await self._hunt.at_hand(trial), execution=trial.execution or Execution())
