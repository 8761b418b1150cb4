"""Jobs: requests for background work, and the states they go through."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal

from app.domain.errors import IllegalTransition
from app.domain.recipes import Recipe
from app.domain.training import TrainingProgress


class JobKind(StrEnum):
    """What a job does; each kind is one module of `workers.jobs`."""

    IMPORT = "import"
    QUANTIZE = "quantize"
    EVALUATE = "evaluate"


class JobState(StrEnum):
    """Where a job stands. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


_NEXT: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    # running -> running: another attempt, after the worker of the last one was lost
    JobState.RUNNING: frozenset({JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed: a `JobFailure`'s code and its sentence."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """How long one named step of a job took."""

    step: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job. Live in Redis while it can change, in the store once it is final.

    Attributes:
        id: 32 hex digits.
        subject: for an import, which kind of upload it reads.
        model: `name:version` of the model it works on; of an import of a model, what it reads.
        dataset: `name:version` of the dataset an import reads.
        calibration: `name:version` of the dataset whose rows set the ranges.
        evaluation: `name:version` of the dataset whose rows score; None takes rows that calibration left over.
        training: `name:version` of the dataset whose rows train, for a recipe that does.
        variant: the name to publish under, or the variant to evaluate.
        attempt: 0 before the first start, then 1, 2, …
        percent: 0 to 100.
        step: what it is doing, in a few words.
        steps: time of every finished step of the current attempt.
        training_progress: where training stands; None while nothing is trained.
    """

    id: str
    kind: JobKind
    created_at: datetime
    subject: Literal["model", "dataset"] | None = None
    model: str | None = None
    dataset: str | None = None
    calibration: str | None = None
    evaluation: str | None = None
    training: str | None = None
    recipe: Recipe | None = None
    variant: str | None = None
    state: JobState = JobState.QUEUED
    attempt: int = 0
    percent: float = 0.0
    step: str = "queued"
    steps: tuple[StepTime, ...] = ()
    training_progress: TrainingProgress | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: JobError | None = None

    def to(self, state: JobState) -> "Job":
        """Return this job in another state.

        Raises:
            IllegalTransition: no rule leads there from the present state.
        """
        if state not in _NEXT[self.state]:
            raise IllegalTransition(f"Job {self.id} is {self.state} and cannot become {state}.")
        return replace(self, state=state)

    def start(self, at: datetime) -> "Job":
        """Return this job at the beginning of its next attempt."""
        started = replace(
            self,
            attempt=self.attempt + 1,
            started_at=at,
            percent=0.0,
            step="starting",
            steps=(),
            training_progress=None,
        )
        return started.to(JobState.RUNNING)

    def succeed(self, at: datetime, *, variant: str | None = None) -> "Job":
        """Return this job done; `variant` is the name that was published."""
        done = replace(self, finished_at=at, percent=100.0, step="done", variant=variant or self.variant)
        return done.to(JobState.SUCCEEDED)

    def fail(self, at: datetime, error: JobError) -> "Job":
        """Return this job failed for this reason."""
        return replace(self, finished_at=at, error=error).to(JobState.FAILED)

    def cancel(self, at: datetime) -> "Job":
        """Return this job cancelled."""
        return replace(self, finished_at=at, step="cancelled").to(JobState.CANCELLED)
