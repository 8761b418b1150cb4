"""`auto`: not a technique of its own but a search for the recipe that keeps a budget."""

from dataclasses import dataclass, field
from typing import Literal

from app.domain.errors import RecipeInvalid
from app.domain.metrics import METRICS
from app.domain.recipes.limits import check_rows

LEAST_SECONDS = 10
MOST_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a variant may cost.

    Attributes:
        metric: a name of `METRICS`; None takes what the rows can tell: the metric of the labels, or agreement or cosine
            with float32 without any.
        max_drop: how much worse than float32 the metric may be, in its own unit (0.005 of top1 is half a point), at
            least 0.
        max_latency_ms: limit of the median time of one row, None for none.
        max_size_bytes: limit of the artifact, None for none.
    """

    metric: str | None = None
    max_drop: float = 0.005
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.metric is not None and (self.metric not in METRICS or not METRICS[self.metric].budget):
            names = ", ".join(name for name, metric in METRICS.items() if metric.budget)
            raise RecipeInvalid(f"The budget's metric is {self.metric[:80]!r}: take one of {names}.")
        if not 0 <= self.max_drop < float("inf"):
            raise RecipeInvalid(f"max_drop is {self.max_drop:g}: take 0 or more, in the metric's own unit.")
        if self.max_latency_ms is not None and not 0 < self.max_latency_ms < float("inf"):
            raise RecipeInvalid(f"max_latency_ms is {self.max_latency_ms:g}: take more than 0, or leave it out.")
        if self.max_size_bytes is not None and self.max_size_bytes <= 0:
            raise RecipeInvalid(f"max_size_bytes is {self.max_size_bytes}: take more than 0, or leave it out.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto:
    """Search for the fastest artifact that keeps the budget, across toolchains and settings.

    Attributes:
        time_limit_seconds: after which no further trial starts, 10 seconds to a week; the best so far is the answer.
        calibration_rows: how many rows every trial may calibrate with.
        seed: picks the rows.
    """

    technique: Literal["auto"] = "auto"
    budget: Budget = field(default_factory=Budget)
    time_limit_seconds: int = 900
    calibration_rows: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        check_rows(self.calibration_rows, self.seed)
        if not LEAST_SECONDS <= self.time_limit_seconds <= MOST_SECONDS:
            raise RecipeInvalid(
                f"time_limit_seconds is {self.time_limit_seconds}: take {LEAST_SECONDS} to {MOST_SECONDS}."
            )

    @property
    def needs_calibration(self) -> bool:
        return True

    @property
    def default_name(self) -> str:
        return "auto"
