"""Evidence beyond the bare measurements: metrics with intervals, verdicts, receipts, checks, and what follows."""

from dataclasses import dataclass
from typing import Literal

from app.domain.recipes import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUse:
    """Which rows were used, and how.

    Attributes:
        dataset: `name:version`.
        source: `given`: the dataset named for this purpose; `held_out`: rows that calibration left over.
        sha256: of the row numbers, ascending, as decimal text joined by commas.
    """

    dataset: str
    rows: int
    source: Literal["given", "held_out"]
    seed: int | None
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % interval, in the metric's unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """A metric on one class alone, in float32 and in the variant; `rows` have the class in their labels."""

    name: str
    rows: int
    float32: float
    variant: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricScore:
    """One metric of every form on the same rows.

    Attributes:
        name: a line of `METRICS`.
        measured: by form: `float32`, `bfloat16`, the variant's name.
        drop: how much worse the variant is than float32, paired on the same rows; positive is worse.
        p_value: of the hypothesis that the two do not differ; None where no test fits.
        method: of interval and test, with their sources.
        changed: where each row counts wholly or not at all: how many count in float32 alone, and in the variant alone.
        classes: of a metric that is a mean over classes; empty for others.
    """

    name: str
    rows: int
    measured: dict[str, Interval]
    drop: Interval
    p_value: float | None
    method: str
    changed: tuple[int, int] | None = None
    classes: tuple[ClassScore, ...] = ()


Outcome = Literal["kept", "missed", "not enough rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a budget was kept, as far as the rows can tell.

    Attributes:
        outcome: `kept` if the whole interval of the drop lies within the budget, `missed` if none of it does, or if
            latency or size break their limits; `not enough rows` between, and below 30 rows where the interval is
            resampled.
        drop: of the budget's metric.
        rows_needed: how many rows would tell, at the drop and spread that were seen; None if these do, or none would.
        reason: one sentence.
    """

    budget: Budget
    outcome: Outcome
    drop: Interval
    rows: int
    rows_needed: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRun:
    """What the engine did for one layer of one form.

    Attributes:
        precision: the element type it computed in; several, joined by commas, if it was split.
        microseconds: mean measured time per run at batch 1.
    """

    precision: str
    implementation: str
    microseconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReceipt:
    """One compute layer of the float32 graph, float beside variant.

    Attributes:
        name: of the node in the float32 artifact, as recipes name it.
        quantized: whether the variant's graph quantizes its inputs.
        variant: None if the engine has no layer of that name there.
    """

    name: str
    kind: str
    quantized: bool
    float32: LayerRun | None
    variant: LayerRun | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof of what ran, layer by layer.

    Attributes:
        fallbacks: layers that the variant's graph quantizes and the engine ran in float.
        conversion_share: share of the variant's time spent converting and reordering instead of computing, 0 to 1.
        conversions: names of the dearest of these, dearest first.
    """

    layers: tuple[LayerReceipt, ...]
    fallbacks: tuple[str, ...]
    conversion_share: float
    conversions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a check found.

    Attributes:
        code: stable, such as `calibration_in_evaluation`.
        severity: `warning` makes the numbers doubtful; `note` is worth knowing.
        message: one sentence: what was found, and what to do.
        rows: numbers of the rows meant, at most 20.
    """

    code: str
    severity: Literal["note", "warning"]
    message: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One of the questions every user asks, answered from the evidence.

    Attributes:
        answer: sentences, the weightiest first.
        next: what to try, best first.
    """

    question: Literal["Why did accuracy drop?", "Why is it not faster?", "Why did it not convert?"]
    answer: tuple[str, ...]
    next: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariance:
    """Whether a row's answer depends on the rows beside it in a batch.

    Attributes:
        invariant: the same row at the same place of a batch, beside other rows, answers the same to the bit.
        largest_difference: over the largest absolute output, 0 or more.
        rows: how many rows were tried.
        batch_size: of the batches compared.
    """

    invariant: bool
    largest_difference: float
    rows: int
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Values of one tensor in float32 and in the variant, on one common range.

    Attributes:
        layer: the node whose weight or input it is.
        low, high: the range, cut into as many equal bins as there are counts.
        before, after: counts.
    """

    layer: str
    kind: Literal["weight", "activation"]
    low: float
    high: float
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSensitivity:
    """What quantizing this one layer alone does.

    Attributes:
        name: of the node in the float32 artifact.
        sqnr_db: of the outputs, over float32's; None if nothing changed.
        drop: of the search's metric on a subset of the selection rows, positive is worse; None where not measured.
        cost_microseconds: what keeping it in float would cost per row: its time in float minus in int8, as measured.
    """

    name: str
    kind: str
    sqnr_db: float | None
    drop: float | None
    cost_microseconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FlippedImage:
    """One row whose answer changed, as a small picture.

    Attributes:
        png: base64 of a PNG of at most 64 by 64 pixels.
        label: None without labels.
    """

    row: int
    png: str
    label: str | None
    float32: str
    variant: str
