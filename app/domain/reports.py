"""report.json: measured facts about one variant, taken on its artifact by the engine that serves it."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, TypeVar

from app.domain.evidence import (
    DataUse,
    Diagnosis,
    Finding,
    FlippedImage,
    Histogram,
    Invariance,
    LayerSensitivity,
    MetricScore,
    Receipt,
    Verdict,
)
from app.domain.recipes import Single
from app.domain.search import Search
from app.domain.training import Training
from app.domain.variants import Execution

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportion:
    """A share of rows with its interval.

    Attributes:
        value: `count / rows`, 0 to 1.
        low, high: the 95 % interval (Wilson 1927).
    """

    value: float
    low: float
    high: float
    count: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Variant minus float32 on the same rows.

    Attributes:
        value: -1 to 1; negative means the variant is worse.
        low, high: the 95 % interval for paired proportions (Newcombe 1998, method 10).
    """

    value: float
    low: float
    high: float
    method: str = "Newcombe 1998, method 10"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Rows whose answer changed, by their number in the evaluation dataset.

    Attributes:
        gained: wrong in float32, right in the variant.
        lost: right in float32, wrong in the variant.
        moved: wrong in both, but differently.
    """

    gained: tuple[int, ...]
    lost: tuple[int, ...]
    moved: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAccuracy:
    """Accuracy on the rows of one class, before and after; `name` is the folder's name or the label."""

    name: str
    rows: int
    float32: float
    variant: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1 accuracy against the labels. `measured` has float32, bfloat16 (where the CPU has it) and the variant."""

    metric: Literal["top1"]
    measured: dict[str, Proportion]
    difference: Difference
    flips: Flips
    classes: tuple[ClassAccuracy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How close one form's outputs are to float32's on the same rows; needs no labels.

    Attributes:
        agreement: share of rows with the same top-1 answer; None if the first output is not (rows, classes).
        sqnr_db: 10·log10 of the energy of float32's outputs over that of the difference; None if there is none.
        cosine: mean over rows of the cosine between the two outputs.
        kl: mean over rows of KL(softmax(float32) ‖ softmax(variant)), nats; None where agreement is None.
    """

    agreement: Proportion | None
    sqnr_db: float | None
    cosine: float
    kl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latency of one form at batch 1, from runs interleaved with the other forms in one process.

    Attributes:
        speedup: float32's p50 over this one's p50.
        quantiles_ms: the distribution: quantiles 0, 5, …, 100 %; empty in older reports.
        rows_per_second: throughput at `batch_size` rows per call.
    """

    p50_ms: float
    p95_ms: float
    p99_ms: float
    speedup: float
    runs: int
    rows_per_second: float
    batch_size: int
    quantiles_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of a process that holds one form and nothing else, after it has answered.

    Attributes:
        pss_bytes: proportional set size with the form loaded.
        peak_bytes: high-water mark of the resident set (VmHWM).
        added_bytes: PSS over the same process before it loaded the form.
    """

    pss_bytes: int
    peak_bytes: int
    added_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One executed node of the engine's own runtime graph.

    Attributes:
        kind: the engine's layer type, such as `Convolution`.
        precision: the element type it computed in, as the engine reports it: `u8`, `i8`, `bf16`, `f32`, …
        implementation: the engine's kernel name, such as `brgconv_avx512_i8`.
        microseconds: mean measured time per run at batch 1.
        nodes: names of the graph's nodes that the engine fused into it, as the engine reports them.
    """

    name: str
    kind: str
    precision: str
    implementation: str
    microseconds: float
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Proof of what ran.

    Attributes:
        int8_share: share of the measured compute time spent in int8 layers, 0 to 1.
    """

    layers: tuple[Layer, ...]
    int8_layers: int
    float_layers: int
    int8_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionCheck:
    """The float32 artifact against the original upload, on random input.

    Attributes:
        max_error: largest absolute difference over the largest absolute output.
        tolerance: the limit `max_error` had to keep.
    """

    rows: int
    max_error: float
    tolerance: float
    original: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where it was measured."""

    cpu: str
    instructions: tuple[str, ...]
    cores: int
    memory_bytes: int
    kernel: str
    libraries: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Bytes on disk: the artifact's, its float32 parent's, and their ratio."""

    bytes: int
    float32_bytes: int
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was measured about one variant. Maps are keyed by form: `float32`, `bfloat16`, the variant's name.

    Attributes:
        execution: how the engine runs the artifact; None in older reports.
        accuracy: None without class labels; `notes` then says so.
        conversion: only for `float32`.
        metrics: every metric that the rows and outputs allow; fidelity among them.
        verdict: only where a budget was set.
        receipt: the layers, float32 beside the variant.
        findings: of the calibration check.
        search: only for `auto`.
        training: only for `qat`; the form `ptq` is then the post-training quantization that it began from.
        notes: sentences for the reader: what could not be measured, and why.
    """

    model: str
    version: int
    variant: str
    artifact_sha256: str
    recipe: Single | None
    size: Size
    calibration: DataUse | None
    evaluation: DataUse | None
    accuracy: Accuracy | None
    fidelity: dict[str, Fidelity]
    latency: dict[str, Latency]
    memory: dict[str, Memory]
    kernels: dict[str, Kernels]
    conversion: ConversionCheck | None
    environment: Environment
    notes: tuple[str, ...]
    created_at: datetime
    execution: Execution | None = None
    metrics: tuple[MetricScore, ...] = ()
    verdict: Verdict | None = None
    receipt: Receipt | None = None
    findings: tuple[Finding, ...] = ()
    diagnosis: tuple[Diagnosis, ...] = ()
    invariance: Invariance | None = None
    histograms: tuple[Histogram, ...] = ()
    sensitivity: tuple[LayerSensitivity, ...] = ()
    gallery: tuple[FlippedImage, ...] = ()
    search: Search | None = None
    training: Training | None = None
    schema_version: Literal[1, 2] = 2

    def renamed(self, variant: str) -> "Report":
        """Return the same report for the name that the variant was published under."""

        def keys(measured: dict[str, Value]) -> dict[str, Value]:
            return {variant if form == self.variant else form: value for form, value in measured.items()}

        return replace(
            self,
            variant=variant,
            accuracy=replace(self.accuracy, measured=keys(self.accuracy.measured)) if self.accuracy else None,
            fidelity=keys(self.fidelity),
            latency=keys(self.latency),
            memory=keys(self.memory),
            kernels=keys(self.kernels),
            metrics=tuple(replace(metric, measured=keys(metric.measured)) for metric in self.metrics),
        )
