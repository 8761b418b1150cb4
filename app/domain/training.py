"""What training tells while it runs and when it is over."""

from dataclasses import dataclass
from math import isfinite
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

MOST_STEPS = 10**12
MOST_RESUMED = 64
"""New beginnings that a report keeps, the newest."""

_SMALLEST, _LARGEST = 1e-100, 1e100
"""Of numbers other than 0: no loss, rate or time is beyond, and whoever draws them may divide by their differences."""

_MOST_BYTES = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """Where training stands.

    Attributes:
        step: finished steps, of `steps`.
        loss: mean over the steps since the last point of the curve, or of that point; None before the first step.
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

    def __post_init__(self) -> None:
        _check_counts(self.step, self.steps)
        _check_numbers(self.loss, self.score, self.best_score)
        _check_amounts(self.learning_rate, self.rows_per_second, self.seconds_left)


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

    def __post_init__(self) -> None:
        _check_counts(self.step)
        _check_numbers(self.loss, self.score)
        _check_amounts(self.learning_rate)
        _check_share(self.agreement)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartScore:
    """A post-training quantization that training could begin from, by a recipe's `summary`."""

    recipe: str
    score: float
    agreement: float | None

    def __post_init__(self) -> None:
        _check_numbers(self.score)
        _check_share(self.agreement)


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

    def __post_init__(self) -> None:
        _check_counts(self.plain_bytes, most=_MOST_BYTES)
        _check_counts(self.sent_bytes, most=_MOST_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingForecast:
    """What the last attempt's steps and looks were expected to need, from a few rehearsals, and what they took.

    Attributes:
        memory_bytes: of all processes together; mapped files, in which the rows lie, do not count.
    """

    seconds: float
    memory_bytes: int
    actual_seconds: float
    actual_memory_bytes: int

    def __post_init__(self) -> None:
        _check_amounts(self.seconds, self.actual_seconds)
        for each in (self.memory_bytes, self.actual_memory_bytes):
            _check_counts(each, most=_MOST_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOutcome:
    """What the process that trained says of it. Like all it is made of, it checks itself: it is a claim.

    Attributes:
        starts: in the order they were tried; the one with the lowest score was taken.
        parameters: how many numbers were trained.
        best_step: the step whose state the artifact has; 0 is the start itself.
        reason: why it ended before its last step, one sentence; None if it did not.
        seconds: of training, all attempts together; what a lost attempt did after its last checkpoint does not count.
        resumed_at: the steps at which later attempts, or processes that were started again, went on; the newest 64.
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

    def __post_init__(self) -> None:
        _check_counts(self.best_step, self.steps_done, self.steps)
        _check_counts(self.checked_same, self.checked_rows)
        _check_counts(1, self.processes)
        _check_counts(self.parameters, most=_MOST_BYTES)
        _check_amounts(self.seconds, self.rows_per_second)
        if len(self.resumed_at) > MOST_RESUMED:
            raise ValueError(
                f"Training went on {len(self.resumed_at):,} times, and at most {MOST_RESUMED} can be told."
            )
        for step in (*self.resumed_at, *(point.step for point in self.points)):
            _check_counts(step, self.steps_done)


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


def _check_counts(*rising: int, most: int = MOST_STEPS) -> None:
    """Check numbers none of which may be above the next one, nor the last above `most`."""
    if list(rising) != sorted(rising) or rising[0] < 0 or rising[-1] > most:
        raise ValueError("A training counted what cannot be: steps, rows or bytes below 0, or more done than there is.")


def _check_numbers(*given: float | None) -> None:
    for value in given:
        if value and not (isfinite(value) and _SMALLEST <= abs(value) <= _LARGEST):
            raise ValueError("A training told a loss or a score that is no finite number, or far beyond all that are.")


def _check_amounts(*given: float) -> None:
    _check_numbers(*given)
    if min(given) < 0:
        raise ValueError("A training told a rate, a speed or a time below 0.")


def _check_share(value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise ValueError("A training told a share of rows that is not between 0 and 1.")
