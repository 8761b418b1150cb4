"""What the Open Inference Protocol's repository and statistics extensions take and give."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.api.schemas.strict import StrictModel
from app.domain.serving import EngineChoice, Knobs, Mode


class IndexRequest(StrictModel):
    """Which models are listed."""

    ready: bool = Field(default=False, strict=True, description="Only those that a runner holds now.")


class IndexedVariant(BaseModel):
    """One variant of a model's version."""

    name: str
    state: Literal["READY", "UNAVAILABLE"]


class IndexedModel(BaseModel):
    """One version of a model."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"] = Field(description="READY when a runner holds one of its variants.")
    reason: str = Field(description="Why it is unavailable; one that is not loaded is loaded by its first request.")
    octet_variants: list[IndexedVariant]


class LoadParameters(StrictModel):
    """What may be pinned of a variant's runners; the rest is measured and chosen."""

    instances: int | None = None
    mode: Mode | None = None
    engine: EngineChoice | None = None
    streams: int | None = None
    threads: int | None = None
    max_batch_size: int | None = None
    max_queue_delay_ms: float | None = None


class LoadRequest(StrictModel):
    """How a variant is loaded."""

    parameters: LoadParameters = LoadParameters()

    def knobs(self) -> Knobs | None:
        """Return what is pinned; None if nothing is.

        Raises:
            RequestInvalid: a value is out of its range.
        """
        pinned = self.parameters.model_dump(exclude_none=True)
        return Knobs(**pinned) if pinned else None


class UnloadParameters(StrictModel):
    """Octet's models have no dependents: the parameter is taken and changes nothing."""

    unload_dependents: bool = False


class UnloadRequest(StrictModel):
    """How a variant is unloaded."""

    parameters: UnloadParameters = UnloadParameters()


class Duration(BaseModel):
    """How often, and how long in all."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """What requests met with. Requests that failed are counted, not timed."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class BatchStatistics(BaseModel):
    """Runs of the engine with so many rows."""

    batch_size: int
    compute_infer: Duration


class ModelStatistics(BaseModel):
    """One version of a model: the sum of its runners since they started."""

    name: str
    version: str
    last_inference: int = Field(description="Milliseconds since 1970; 0 for never.")
    inference_count: int = Field(description="Rows.")
    execution_count: int = Field(description="Runs of the engine.")
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]
    octet: Annotated[
        list[dict[str, Any]],
        Field(description="One for each runner: variant, instance, mode, knobs, tuning, backlog, refused, memory."),
    ]


class Statistics(BaseModel):
    """The answer of the statistics extension."""

    model_stats: list[ModelStatistics]
