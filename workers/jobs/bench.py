"""What a job works with: the services it may call, and the bench that runs its steps and tells how far it is."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from app.catalogue.history import JobHistory
from app.catalogue.shelf import Shelf
from app.catalogue.store import Store
from app.catalogue.variants import Variants
from app.domain.datasets import DatasetManifest
from app.domain.errors import OutOfTime, QueueUnavailable
from app.domain.jobs import Job, StepTime
from app.domain.models import ModelManifest
from app.domain.training import TrainingProgress
from app.jobs.live import LiveJobs
from workers.claims import OnCheckpoint
from workers.limits import Limits
from workers.sandbox import run_stage

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_TELL_EVERY_SECONDS = 0.2
_TELL_TRAINING_EVERY_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """The services of a worker.

    Attributes:
        scratch: folder below which every job gets one of its own.
        limits: memory and disk of one stage, seconds of a whole job.
        allow_unsandboxed: take uploads that execute code although the kernel cannot confine them.
    """

    store: Store
    models: Shelf[ModelManifest]
    datasets: Shelf[DatasetManifest]
    variants: Variants
    history: JobHistory
    live: LiveJobs
    scratch: Path
    limits: Limits
    allow_unsandboxed: bool


class Bench:
    """Runs the steps of one attempt at a job and keeps its live state; `scratch` is the attempt's own folder.

    Redis being away for a while costs progress reports, not the job.

    Attributes:
        brought: SHA-256 by name of what lies in `in/` of the scratch folder already.
        peak_bytes: the most memory that a stage of this attempt was seen to take.
    """

    def __init__(self, job: Job, workshop: Workshop) -> None:
        self.job = job
        self.workshop = workshop
        self.scratch = workshop.scratch
        self.brought: dict[str, str] = {}
        self.peak_bytes = 0
        self._told_at = 0.0
        self._began = time.monotonic()

    @asynccontextmanager
    async def step(self, name: str, *, until: float) -> AsyncIterator[None]:
        """Name what is done inside the block, time it, and end it at `until` percent."""
        await self._tell(replace(self.job, step=name))
        began = time.monotonic()
        yield
        done = StepTime(step=name, seconds=round(time.monotonic() - began, 3))
        await self._tell(replace(self.job, percent=until, steps=(*self.job.steps, done)))

    @property
    def seconds(self) -> float:
        """How long this attempt has lasted."""
        return time.monotonic() - self._began

    @property
    def seconds_left(self) -> float:
        """How long it may still last."""
        return self.workshop.limits.seconds - self.seconds

    async def stage(
        self,
        stage: str,
        spec: object,
        *,
        gives: type[Result],
        until: float,
        shown: str | None = None,
        seconds: float | None = None,
        on_checkpoint: OnCheckpoint | None = None,
    ) -> Result:
        """Run one stage in the sandbox inside a `step`, passing its progress on up to `until` percent.

        Args:
            shown: what the job says it is doing, whatever the stage says.
            seconds: a tighter limit than the job's own.
            on_checkpoint: only for a stage that trains, as of `run_stage`.
        """
        began = self.job.percent

        def percent_at(share: float) -> float:
            return min(until, max(self.job.percent, round(began + share * (until - began), 1)))  # never back

        async def on_progress(share: float, words: str) -> None:
            if time.monotonic() - self._told_at >= _TELL_EVERY_SECONDS:
                await self._tell(replace(self.job, percent=percent_at(share), step=shown or words))

        async def on_training(said: TrainingProgress) -> None:
            await self._tell_training(said, shown=shown, percent=percent_at(said.step / max(1, said.steps)))

        def on_memory(memory_bytes: int) -> None:
            self.peak_bytes = max(self.peak_bytes, memory_bytes)

        result = await run_stage(
            stage,
            spec,
            scratch=self.scratch,
            limits=self._limits(seconds),
            on_progress=on_progress,
            on_log=self.log,
            on_memory=on_memory,
            on_training=on_training if stage == "train" else None,
            on_checkpoint=on_checkpoint,
            allow_unsandboxed=self.workshop.allow_unsandboxed,
        )
        if not isinstance(result, gives):
            raise TypeError(f"stage {stage} gave {type(result).__name__}, not {gives.__name__}")
        if stage == "train":
            await self._tell(self.job)  # the last word, however soon it came after the one before
        return result

    def _limits(self, seconds: float | None) -> Limits:
        """Return what a stage may take: of time, what the job has left."""
        left = self.seconds_left
        if left <= 0:
            raise OutOfTime(
                f"The job was stopped before {self.job.step!r}: it may take {self.workshop.limits.seconds:g} seconds "
                "(OCTET_JOB_TIMEOUT_SECONDS). Send fewer rows, or raise the limit."
            )
        return replace(self.workshop.limits, seconds=left if seconds is None else min(left, seconds))

    async def log(self, line: str) -> None:
        """Add a line to the job's log."""
        try:
            await self.workshop.live.append_log(self.job.id, [line])
        except QueueUnavailable as error:
            log.warning("a line of the log of job %s was lost: %s", self.job.id, error)

    async def _tell_training(self, said: TrainingProgress, *, shown: str | None, percent: float) -> None:
        words = shown or f"training: step {said.step} of {said.steps}"
        self.job = replace(self.job, percent=percent, step=words, training_progress=said)
        if time.monotonic() - self._told_at >= _TELL_TRAINING_EVERY_SECONDS:
            await self._tell(self.job)

    async def _tell(self, job: Job) -> None:
        self.job, self._told_at = job, time.monotonic()
        try:
            await self.workshop.live.save(job)
        except QueueUnavailable as error:
            log.warning("the progress of job %s was not told: %s", job.id, error)
