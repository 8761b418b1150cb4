"""What a search keeps and tells: forecast, trials, the Pareto front, and the choice."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from app.domain.evidence import DataUse, Interval, LayerSensitivity, Receipt
from app.domain.recipes import Auto, Single
from app.domain.training import Training
from app.domain.variants import Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a job was expected to need, before it began, and what it took.

    Attributes:
        rows: how many rows calibrate, select and score together.
        memory_bytes: largest resident memory of one stage.
        actual_*: filled in when it is over.
    """

    rows: int
    memory_bytes: int
    seconds: float
    actual_memory_bytes: int | None = None
    actual_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate, made and measured on its artifact; stored as soon as it is finished.

    Attributes:
        key: hash of the recipe, 16 hex digits: names the trial's files.
        failure: one sentence if it could not be made or measured; then nothing below is set.
        latency_ms, speedup: p50 of one row, and float32's p50 of the same run over it.
        memory_bytes: what the form adds to a process that loads it.
        score: the metric on the selection rows, in its own unit.
        drop: of the metric, paired with float32 on the selection rows; positive is worse.
        noise: what breaks ties: 1 - cosine with float32's outputs, 0 or more.
        seconds: what the trial took.
    """

    key: str
    recipe: Single
    failure: str | None = None
    artifact_sha256: str | None = None
    execution: Execution | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    memory_bytes: int | None = None
    score: float | None = None
    drop: Interval | None = None
    noise: float | None = None
    fallbacks: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTrial:
    """A trial as the store keeps it until its search has published: what later candidates and attempts start from.

    Attributes:
        libraries: what made the artifact.
        metric: what score and drop were read in.
        receipt: what the engine did for each layer, float32 beside it.
        microseconds: of all layers of the trial's form together, as profiled.
        training: how it was trained, if it was.
    """

    trial: Trial
    finished_at: datetime
    libraries: dict[str, str]
    metric: str | None = None
    notes: tuple[str, ...] = ()
    receipt: Receipt | None = None
    microseconds: float = 0.0
    training: Training | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The whole of a search, as the report tells it.

    Attributes:
        metric: the one the budget was read in.
        selection: the rows that chose; never those of the final score.
        trials: in the order they ran, those taken over from an earlier attempt first.
        front: keys of the trials that no other beats in score, latency, size and memory at once.
        chosen: key of the published trial.
        reason: one sentence.
        ended: `complete`, or what stopped it early.
    """

    request: Auto
    metric: str
    selection: DataUse
    forecast: Forecast
    trials: tuple[Trial, ...]
    sensitivity: tuple[LayerSensitivity, ...]
    front: tuple[str, ...]
    chosen: str
    reason: str
    ended: Literal["complete", "time limit", "cancelled", "memory limit"]
