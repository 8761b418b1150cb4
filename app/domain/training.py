"""What training tells while it runs and when it is over."""

from dataclasses import dataclass
from typing import Literal

from app.domain.errors import RecipeInvalid
from app.domain.evidence import DataUse

Ended = Literal["complete", "early stopping", "stopped on request", "time limit", "diverged"]
Returned = Literal["trained", "start"]

PTQ = "ptq"
"""The form that training began from, in a report's maps."""

TRAINED = "trained"
"""The form that was trained, where the start was published instead."""

MOST_POINTS = 500
"""Points of a curve that a report keeps; neighbours are joined beyond it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """Where training stands.

    Attributes:
        step: finished steps, of `steps`.
        loss: mean over the steps since the last word; None before the first step.
        score: the loss of the held-out rows when they were looked at last; lower is better.
        best_score: the lowest so far; the start's own counts.
        learning_rate: of the last step.
        rows_per_second: of all processes together.
        seconds_left: until the last step, at this speed.
    """

    step: int
    steps: int
    loss: float | None
    score: float | None
    best_score: float | None
    learning_rate: float
    rows_per_second: float
    seconds_left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPoint:
    """One point of the curves.

    Attributes:
        loss: mean over the steps since the point before; None at step 0.
        score: the loss of the held-out rows, lower is better; None where nobody looked.
        agreement: share of the held-out rows answered like the teacher, or the labels; None where that has no meaning.
    """

    step: int
    loss: float | None
    learning_rate: float
    score: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartScore:
    """A post-training quantization that training could begin from, by a recipe's `summary`."""

    recipe: str
    score: float
    agreement: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WireUse:
    """What the gradients of one step take on the wire.

    Attributes:
        hook: the recipe's `compression`.
        plain_bytes: of the gradients in float32.
        sent_bytes: of what one process hands to the collective, measured; mean over the steps.
    """

    hook: str
    plain_bytes: int
    sent_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingForecast:
    """What training was expected to need, from a few steps on small batches, and what it took."""

    seconds: float
    memory_bytes: int
    actual_seconds: float
    actual_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOutcome:
    """What the process that trained says of it.

    Attributes:
        starts: in the order they were tried; the one with the lowest score was taken.
        parameters: how many numbers were trained.
        best_step: the step whose state the artifact has; 0 is the start itself.
        reason: why it ended before its last step, one sentence; None if it did not.
        seconds: of training, all attempts together; what a lost attempt did after its last checkpoint does not count.
        resumed_at: the steps at which later attempts, or processes that were started again, went on.
        checked_rows: held-out rows answered by the artifact in the engine and by the fake-quantized module.
        checked_same: how many of them were answered alike.
    """

    start: str
    starts: tuple[StartScore, ...]
    teacher: str | None
    parameters: int
    points: tuple[TrainingPoint, ...]
    steps: int
    steps_done: int
    best_step: int
    ended: Ended
    reason: str | None
    seconds: float
    rows_per_second: float
    processes: int
    resumed_at: tuple[int, ...]
    checked_rows: int
    checked_same: int
    forecast: TrainingForecast | None = None
    wire: WireUse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The report's chapter on training.

    Attributes:
        returned: `start` where the trained artifact was worse than the start's on the evaluation rows.
        choice: why, one sentence.
        rows: which rows trained; those held out of them chose the step.
    """

    outcome: TrainingOutcome
    rows: DataUse
    held_out: DataUse
    returned: Returned
    choice: str


def check_variant_name(name: str | None) -> None:
    """Check the name that a trained variant is to have.

    Raises:
        RecipeInvalid: its report would have two forms of that name.
    """
    if name in (PTQ, TRAINED):
        raise RecipeInvalid(f"In the report of a training {name!r} names another form: take another name.")
