"""What the stages that read uploads are told, and what they answer."""

from dataclasses import dataclass
from typing import Literal

from app.domain.datasets import ArraySpec, DatasetFormat
from app.domain.models import ModelFormat
from app.domain.preprocessing import ImagePreprocessing
from app.domain.reports import ConversionCheck
from app.domain.tensors import Signature
from workers.stage_records.common import check_libraries


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
        check_libraries(self.libraries)


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
