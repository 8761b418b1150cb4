"""What the stages that measure and judge a variant are told, and what they answer."""

from dataclasses import dataclass, field

from app.domain.evidence import Finding, Histogram, Invariance, LayerSensitivity, MetricScore, Receipt
from app.domain.reports import Accuracy, Difference, Environment, Fidelity, Kernels, Latency, Memory
from app.domain.tensors import Signature
from app.domain.variants import Execution
from workers.stage_records.common import RowSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One runnable form to measure: `name` is `float32`, `bfloat16` or the variant's.

    Attributes:
        optional: `time` leaves it out where the engine has no kernels for its precision, and does not fail.
    """

    name: str
    artifact: str
    execution: Execution
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSpec:
    """Answer the evaluation rows with every form; the first is float32, the last is the variant."""

    forms: tuple[Form, ...]
    signature: Signature
    evaluation: RowSource
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One evaluation row whose answer changed, as the model saw it.

    Attributes:
        pixels: `height * width * 3` values of 0 to 255, row by row; at most 64 by 64 of them.
    """

    row: int
    width: int
    height: int
    pixels: tuple[int, ...]
    label: str | None
    float32: str
    variant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult:
    """
    Attributes:
        findings: what the answers themselves make doubtful.
        ahead: by form between the first and the last: share of rows that the last answers right minus that form's,
            paired; empty without class labels.
    """

    accuracy: Accuracy | None
    fidelity: dict[str, Fidelity]
    metrics: tuple[MetricScore, ...] = ()
    invariance: Invariance | None = None
    gallery: tuple[Picture, ...] = ()
    findings: tuple[Finding, ...] = ()
    ahead: dict[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpec:
    """Time every form, interleaved in one process, and read which kernels ran.

    Attributes:
        profiled: whether to read which kernels ran; without it there are times alone.
    """

    forms: tuple[Form, ...]
    signature: Signature
    runs: int = 200
    batch_size: int = 16
    profiled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeResult:
    """
    Attributes:
        kernels: empty where nothing was profiled.
        receipt: of the last form beside the first; None for one form alone, and where nothing was profiled.
    """

    latency: dict[str, Latency]
    kernels: dict[str, Kernels]
    environment: Environment
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeighSpec:
    """Load one form in a process of its own and read that process's memory."""

    form: Form
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class WeighResult:
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class SenseSpec:
    """Quantize one layer at a time, as the variant does it, and compare the outputs with float32's.

    Attributes:
        variant: a QDQ graph that quantizes every layer in question.
        metric: what `drop` is read in; None measures SQNR alone.
        costs: by layer, what keeping it in float costs, microseconds.
        seconds: after which the layers not yet tried are left out.
    """

    float32: str
    variant: str
    signature: Signature
    rows: RowSource
    metric: str | None
    costs: dict[str, float]
    seconds: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SenseResult:
    layers: tuple[LayerSensitivity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSpec:
    """Look for what makes the numbers doubtful: in the rows, in the preprocessing, in the layers' values.

    Attributes:
        variant: None looks at the rows alone.
        selection: rows that chose the variant among others.
    """

    float32: str
    variant: str | None
    signature: Signature
    calibration: RowSource | None
    evaluation: RowSource
    classes: tuple[str, ...]
    selection: RowSource | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    findings: tuple[Finding, ...]
    histograms: tuple[Histogram, ...]
