"""What the stages that make a variant's graph are told, and what they answer."""

from dataclasses import dataclass
from typing import Literal

from app.domain.recipes import Single
from app.domain.tensors import Signature
from app.domain.variants import Execution
from workers.stage_records.common import RowSource, check_libraries


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
        check_libraries(self.libraries)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptSpec:
    """Check, in a process that has run nothing uploaded, an artifact made by one that may have."""

    artifact: str
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptResult:
    """The artifact is plain standard ONNX in one file, with the signature's inputs and outputs."""

    artifact: Literal["out/variant.onnx"]
