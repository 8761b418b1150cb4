"""The steps of a job that run in the sandbox: what each is told and what it answers. No library is imported here.

A stage is a function `run(spec, scratch, progress) -> result` in the module that `STAGES` names. Paths in a spec or a
result are relative to the scratch folder. What a stage answers is a claim by a process that may have run hostile
code: the job checks it before it uses it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from app.domain.datasets import ArraySpec, DatasetFormat
from app.domain.evidence import Finding, Histogram, Invariance, LayerSensitivity, MetricScore, Receipt
from app.domain.models import ModelFormat
from app.domain.preprocessing import ImagePreprocessing
from app.domain.recipes import Qat, Single
from app.domain.reports import Accuracy, ConversionCheck, Difference, Environment, Fidelity, Kernels, Latency, Memory
from app.domain.tensors import Signature
from app.domain.training import TrainingOutcome, TrainingProgress
from app.domain.variants import Execution

FLOAT32_OUTPUT: Final = "out/float32.onnx"
SAMPLES_OUTPUT: Final = "out/samples.npz"
VARIANT_OUTPUT: Final = "out/variant.onnx"
"""Where stages write, always: a name that a hostile stage could choose would be one more thing to check."""

CHECKPOINT_OUTPUT: Final = "out/checkpoint.safetensors"
"""Replaced by renaming whenever training says so: whole at any time, and whoever holds the old one open keeps it."""

STOP_INPUT: Final = "in/stop"
"""When this file appears, training ends with what it has."""

MAX_LIBRARIES = 64

Progress = Callable[[float, str], None]
"""Called by a stage with the share done, 0 to 1, and a few words."""


class TrainingTeller(Protocol):
    """What a stage that trains is given for `Progress`: it has more to tell."""

    def __call__(self, share: float, step: str) -> None: ...

    def tell(self, progress: TrainingProgress) -> None:
        """Say where training stands."""

    def checkpoint(self, step: int) -> None:
        """Say that `out/checkpoint.safetensors` holds the state after this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSpec:
    """Read an upload of any format and write `out/float32.onnx`. The only stage that may execute what was uploaded.

    Attributes:
        upload: path of the upload.
        rows: how many random rows to record the original's answers on.
    """

    upload: str
    rows: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult:
    """
    Attributes:
        artifact: the float32 ONNX, one file, symbolic batch axis where possible.
        samples: `.npz` with `input:<name>` and `output:<name>` arrays: random input, the original's answers.
        original: what answered, such as `torch 2.13.0`.
        was_training: the upload was exported in training mode, and turned.
    """

    format: ModelFormat
    artifact: Literal["out/float32.onnx"]
    samples: Literal["out/samples.npz"]
    original: str
    original_batch: int | None
    libraries: dict[str, str]
    was_training: bool = False

    def __post_init__(self) -> None:
        _check_libraries(self.libraries)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySpec:
    """Check the float32 artifact in a process that has run nothing uploaded, against the recorded answers.

    Attributes:
        preprocessing: what the uploader says makes rows of images; checked against the input.
    """

    artifact: str
    samples: str
    original: str
    preprocessing: ImagePreprocessing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """The signature as the ONNX graph itself declares it, and how far its answers are from the original's."""

    signature: Signature
    parameters: int
    conversion: ConversionCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeSpec:
    """Read a dataset upload once, as a stream, and check every row."""

    upload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeResult:
    format: DatasetFormat
    rows: int
    arrays: tuple[ArraySpec, ...]
    labelled: bool
    classes: tuple[str, ...]
    labels: ArraySpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """Rows of a dataset, ready to become a model's input.

    Attributes:
        path: the dataset's file.
        rows: which rows, ascending.
    """

    path: str
    format: DatasetFormat
    rows: tuple[int, ...]
    preprocessing: ImagePreprocessing | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformSpec:
    """Make the variant's graph, `out/variant.onnx`, from the float32 artifact, or from the upload itself.

    Attributes:
        calibration: None where the recipe needs none.
        upload: path of the `.pt2`, for toolchains that start from it; reading it may execute what was uploaded, so
            the `accept` stage has to follow.
    """

    artifact: str
    signature: Signature
    recipe: Single
    calibration: RowSource | None
    upload: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformResult:
    """
    Attributes:
        notes: sentences for the report: what the recipe asked for and the graph had no place for.
    """

    artifact: Literal["out/variant.onnx"]
    execution: Execution
    libraries: dict[str, str]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_libraries(self.libraries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A post-training quantization to begin from: its recipe's `summary` and its artifact."""

    recipe: str
    artifact: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Another model that answers the training rows: `name:version` and its float32 artifact."""

    name: str
    artifact: str
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """Train a static quantization from the best of the starts, and write `out/variant.onnx`.

    Attributes:
        float32: the float32 artifact: the teacher where no other is named.
        training, held_out: rows that train, and rows that choose the step.
        classes: names of the classes, where the labels are classes and have names.
        values: the answers are real numbers, and no classes even where they look like it.
        checkpoint: the state to go on from; None begins anew.
        seconds: training ends in time for this; a forecast beyond it fails at once.
        began_at: when the seconds began to count, in seconds since 1970: a process that is started again has no more,
            nor has one on another machine, whose other clocks began elsewhere. The sandbox sets it; 0 is now.
        memory_bytes: a forecast beyond it fails at once.
    """

    float32: str
    starts: tuple[Start, ...]
    signature: Signature
    recipe: Qat
    training: RowSource
    held_out: RowSource
    classes: tuple[str, ...] = ()
    values: bool = False
    teacher: Teacher | None = None
    checkpoint: str | None = None
    seconds: float
    began_at: float = 0.0
    memory_bytes: int

    @property
    def processes(self) -> int:
        """How many processes do it together."""
        return self.recipe.processes

    @property
    def state_seconds(self) -> float:
        """How often `out/checkpoint.safetensors` may be written anew."""
        return self.recipe.checkpoint_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """
    Attributes:
        start: the start that was taken, by its place in the spec.
    """

    artifact: Literal["out/variant.onnx"]
    start: int
    outcome: TrainingOutcome
    libraries: dict[str, str]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_libraries(self.libraries)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptSpec:
    """Check, in a process that has run nothing uploaded, an artifact made by one that may have."""

    artifact: str
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptResult:
    """The artifact is plain standard ONNX in one file, with the signature's inputs and outputs."""

    artifact: Literal["out/variant.onnx"]


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
class OverlapSpec:
    """Look for evaluation rows that equal one that trains, by what is in them."""

    training: RowSource
    evaluation: RowSource


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapResult:
    """
    Attributes:
        rows: the first of them, ascending.
    """

    count: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    findings: tuple[Finding, ...]
    histograms: tuple[Histogram, ...]


def _check_libraries(libraries: dict[str, str]) -> None:
    if len(libraries) > MAX_LIBRARIES:
        raise ValueError(f"A stage names {len(libraries)} libraries, but at most {MAX_LIBRARIES} can be real.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One line of the table: where the function is, and the records it takes and gives."""

    function: str
    spec: type[Any]
    result: type[Any]


STAGES: dict[str, Stage] = {
    "convert": Stage(function="workers.formats:convert", spec=ConvertSpec, result=ConvertResult),
    "verify": Stage(function="workers.measure.conversion:verify", spec=VerifySpec, result=VerifyResult),
    "describe": Stage(function="workers.data.describe:describe", spec=DescribeSpec, result=DescribeResult),
    "transform": Stage(function="workers.toolchains:transform", spec=TransformSpec, result=TransformResult),
    "train": Stage(function="workers.training.stage:train", spec=TrainSpec, result=TrainResult),
    "accept": Stage(function="workers.toolchains.finish:accept", spec=AcceptSpec, result=AcceptResult),
    "sense": Stage(function="workers.measure.sensitivity:sense", spec=SenseSpec, result=SenseResult),
    "check": Stage(function="workers.measure.checks:check", spec=CheckSpec, result=CheckResult),
    "overlap": Stage(function="workers.measure.row_identity:overlap", spec=OverlapSpec, result=OverlapResult),
    "score": Stage(function="workers.measure.score:score", spec=ScoreSpec, result=ScoreResult),
    "time": Stage(function="workers.measure.timing:measure", spec=TimeSpec, result=TimeResult),
    "weigh": Stage(function="workers.measure.memory:weigh", spec=WeighSpec, result=WeighResult),
}
