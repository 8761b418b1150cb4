"""The order of a search: opening, settings one by one, single layers, mixed precision; as far as the time goes."""

from collections.abc import Iterable
from dataclasses import replace
from statistics import median
from typing import Literal

from app.domain.errors import JobFailure, OutOfMemory
from app.domain.evidence import LayerSensitivity
from app.domain.recipes import Budget, PtqStatic, Qat, Single
from app.domain.search import StoredTrial, Trial
from app.domain.variants import FLOAT32, Execution
from workers.jobs.bench import Bench
from workers.jobs.examining import measure_sensitivity
from workers.jobs.search.candidates import (
    key_of,
    late,
    learned,
    narrow,
    opening,
    refinement,
    seconds_factor,
    trained,
)
from workers.jobs.search.choice import eligible, is_bfloat16, loss_of, measured, pick
from workers.jobs.search.mixed import Layers, mixed
from workers.jobs.search.plan import Plan
from workers.jobs.search.trial import CANDIDATE, Turn, place_of, run_trial, words
from workers.jobs.transforming import bring_float32
from workers.stage_records.measuring import Form

Ended = Literal["complete", "time limit", "memory limit"]

FIRST_PERCENT, LAST_PERCENT = 5.0, 80.0
_USUAL_TRIALS = 18
_SAFETY = 1.3
"""How much longer than those before it a trial may take without breaking the time limit."""
_MOST_OUT_OF_MEMORY = 2
_SCRATCH_SHARE = 4
"""The part of the scratch folder that artifacts at hand may fill: a quarter."""
_SENSE_ROWS = 128
_SENSE_TRIALS = 2.0
"""How many trials' time the look at single layers may take."""


class _Enough(Exception):
    """The search stops here, with what it has."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended)
        self.ended = ended


class Hunt:
    """One attempt at a search.

    Attributes:
        done: finished trials by key, in the order they ended; those of earlier attempts first.
        sensitivity: of the layers of the first base, once it was measured.
    """

    def __init__(self, bench: Bench, plan: Plan) -> None:
        self.done: dict[str, StoredTrial] = {}
        self.sensitivity: tuple[LayerSensitivity, ...] = ()
        self._bench, self._plan = bench, plan
        self._lengths: list[float] = []
        self._out_of_memory = 0

    async def run(self) -> Ended:
        """Try candidates until there are none left, or no time."""
        await self._take_over()
        try:
            await self._try_all(opening(self._plan.profile, self._plan.request))
            await self._narrow()
            await self._improve(self._bases()[:1])
            await self._try_all(late(self._plan.profile, self._plan.request))
            await self._improve(self._bases())
            recipe = learned(self.trials())  # last: it takes as long as several others
            await self._try_all([recipe] if recipe else [])
            await self._train()
        except _Enough as enough:
            return enough.ended
        return "complete"

    def trials(self) -> list[Trial]:
        """Return what was tried so far."""
        return [stored.trial for stored in self.done.values()]

    def replace(self, trials: Iterable[Trial]) -> None:
        """Put trials that were measured again in the place of what they were."""
        for trial in trials:
            self.done[trial.key] = replace(self.done[trial.key], trial=trial)

    def give_up(self, trial: Trial, why: str) -> None:
        """Count a trial as failed after all."""
        self.replace([Trial(key=trial.key, recipe=trial.recipe, failure=why, seconds=trial.seconds)])

    async def at_hand(self, trial: Trial) -> str:
        """Return where a trial's artifact lies in the scratch folder, fetched if it was not there.

        Raises:
            StoreUnavailable: another job has published the same search meanwhile and tidied up.
        """
        relative = place_of(trial.key)
        path = self._bench.scratch / relative
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            await self._plan.trials.fetch(self.done[trial.key], path)
        return relative

    async def _take_over(self) -> None:
        for stored in await self._plan.trials.found():
            self.done[stored.trial.key] = stored
        if self.done:
            await self._bench.log(f"{len(self.done)} finished trials of an earlier attempt were taken over")

    def _make_room(self, trial: Trial) -> None:
        """Leave an artifact to the store alone where all of them would fill the scratch folder."""
        held = sum(file.stat().st_size for file in (self._bench.scratch / "made").glob("*.onnx"))
        if trial.failure is None and held > self._bench.workshop.limits.scratch_bytes // _SCRATCH_SHARE:
            (self._bench.scratch / place_of(trial.key)).unlink()

    async def _try_all(self, recipes: Iterable[Single]) -> None:
        for recipe in recipes:
            await self._try(recipe)

    async def _try(self, recipe: Single) -> None:
        if key_of(recipe) in self.done:
            return
        expected = self._expected(recipe)
        if self._seconds_left < expected:
            raise _Enough("time limit")
        number = len(self.done) + 1
        # A trial that takes longer than it should is stopped when only the final measuring has still its time.
        turn = Turn(shown=words(number, recipe), seconds=self._seconds_left, until=self._percent_after(expected))
        stored, failure = await run_trial(self._bench, self._plan, recipe, turn)
        self.done[stored.trial.key] = stored
        self._make_room(stored.trial)
        if failure is None and not isinstance(recipe, Qat):
            self._lengths.append(stored.trial.seconds / seconds_factor(recipe))
        self._count_out_of_memory(failure)

    def _count_out_of_memory(self, failure: JobFailure | None) -> None:
        self._out_of_memory = self._out_of_memory + 1 if isinstance(failure, OutOfMemory) else 0
        if self._out_of_memory >= _MOST_OUT_OF_MEMORY:
            raise _Enough("memory limit")

    async def _improve(self, bases: Iterable[PtqStatic]) -> None:
        for base in bases:
            await self._mix(await self._refine(base))

    def _bases(self) -> list[PtqStatic]:
        """Return each toolchain's best recipe as it comes, the best of all first."""
        profile, request = self._plan.profile, self._plan.request
        first = [self.done.get(key_of(recipe)) for recipe in (*opening(profile, request), *late(profile, request))]
        left = [one.trial for one in first if one is not None and isinstance(one.trial.recipe, PtqStatic)]
        bases: list[PtqStatic] = []
        while (best := _best(left)) is not None:
            bases.append(best)
            left = [trial for trial in left if trial.recipe.toolchain != best.toolchain]
        return bases

    async def _refine(self, base: PtqStatic) -> PtqStatic:
        """Change one setting at a time, keeping what wins; leave time for mixed precision."""
        while True:
            by_key = {trial.key: trial for trial in self.trials()}
            best, recipe = refinement(self._plan.profile, by_key, base=base)
            if recipe is None or self._seconds_left < self._expected(recipe) * (2 + _SENSE_TRIALS):
                return best
            await self._try(recipe)

    async def _mix(self, recipe: PtqStatic) -> None:
        """Keep in float what costs little time and much accuracy."""
        base = self.done[key_of(recipe)]
        sensitivity = await self._sense(base)
        self.sensitivity = self.sensitivity or sensitivity
        cast = next((one for one in self.done.values() if is_bfloat16(one.trial) and one.trial.failure is None), None)
        layers = Layers.of(base, sensitivity, bfloat16=cast)
        drop, most = loss_of(base.trial), self._budget.max_drop
        for candidate in mixed(recipe, layers, drop=drop, max_drop=most):
            await self._try(candidate)

    async def _narrow(self) -> None:
        """Store weights in 4 bits where the size that is asked for needs it."""
        if self._budget.max_size_bytes is None or eligible(self.trials(), self._budget):
            return
        for recipe in narrow(self._plan.request, self._plan.profile):
            await self._try(recipe)

    async def _train(self) -> None:
        """Train the best where it does not keep the budget safely, last of all and only where the time is there."""
        calibration = self._plan.order.calibration
        recipe = trained(self.trials(), self._plan.request, rows=len(calibration.rows) if calibration else 0)
        if recipe is None or key_of(recipe) in self.done:
            return
        if self._seconds_left < self._expected(recipe):
            await self._bench.log("there is no time left to train the best static candidate")
            return
        await self._try(recipe)

    async def _sense(self, base: StoredTrial) -> tuple[LayerSensitivity, ...]:
        kept = await self._plan.trials.sensitivity(base.trial.key)
        if kept is not None:
            return kept
        allowed = min(120.0, _SENSE_TRIALS * self._expected(base.trial.recipe), self._seconds_left - 1)
        if allowed <= 1 or base.trial.execution is None:
            raise _Enough("time limit")
        float32 = Form(name=FLOAT32, artifact=await bring_float32(self._bench, self._plan.order), execution=Execution())
        form = Form(name=CANDIDATE, artifact=await self.at_hand(base.trial), execution=base.trial.execution)
        layers = await measure_sensitivity(
            self._bench,
            (float32, form),
            self._plan.order.model,
            rows=self._plan.selection,
            receipt=base.receipt,
            metric=base.metric,
            most_rows=_SENSE_ROWS,
            seconds=allowed,
            until=self._percent_after(allowed),
        )
        if layers:  # a look that failed may succeed for whoever goes on from here
            await self._plan.trials.keep_sensitivity(base.trial.key, layers)
        return layers

    @property
    def _budget(self) -> Budget:
        return self._plan.request.budget

    @property
    def _limit(self) -> float:
        """After how many seconds of this attempt the last trial has to be over."""
        whole = min(float(self._plan.request.time_limit_seconds), self._bench.workshop.limits.seconds)
        return whole - self._plan.load.final_seconds

    @property
    def _seconds_left(self) -> float:
        return self._limit - self._bench.seconds

    def _expected(self, recipe: Single) -> float:
        plain = _SAFETY * median(self._lengths) if self._lengths else self._plan.load.trial_seconds
        training = self._plan.load.training_seconds(_rows_trained(recipe)) if isinstance(recipe, Qat) else 0.0
        return plain * seconds_factor(recipe) + training

    def _percent_after(self, seconds: float) -> float:
        time_share = (self._bench.seconds + seconds) / max(self._limit, 1.0)
        share = min(1.0, max(time_share, (len(self.done) + 1) / _USUAL_TRIALS))
        return max(self._bench.job.percent, round(FIRST_PERCENT + share * (LAST_PERCENT - FIRST_PERCENT), 1))


def _rows_trained(recipe: Qat) -> int:
    return (recipe.steps or 0) * recipe.batch_size


def _best(trials: Iterable[Trial]) -> PtqStatic | None:
    """Return the recipe of the best static trial."""
    static = [trial for trial in measured(trials) if isinstance(trial.recipe, PtqStatic)]
    recipe = pick(static).recipe if static else None
    return recipe if isinstance(recipe, PtqStatic) else None
