"""Variants: a runnable form of one version of a model, and the artifact that is its files."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from app.domain.recipes import Single
from app.domain.tensors import Signature

Engine = Literal["openvino", "onnxruntime"]
Precision = Literal["float32", "bfloat16"]

FLOAT32 = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How an engine must run the artifact so that it is what was measured.

    Attributes:
        float_precision: what layers that are not quantized compute in. OpenVINO takes bfloat16 on its own where
            the CPU has it; Octet always says which.
        dynamic_group_size: how many activations share a scale where the engine quantizes them while they pass; 0 for
            never, which Octet always says too: OpenVINO does it on its own where weights are int8.
    """

    engine: Engine = "openvino"
    float_precision: Precision = "float32"
    dynamic_group_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The immutable file of a variant.

    Attributes:
        file: its name inside the variant's folder, a plain name.
        sha256: of its bytes, 64 hex digits.
    """

    file: str
    size_bytes: int
    sha256: str
    media_type: str = "application/onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One published variant. Its record is written last, so who sees it sees all of it.

    Attributes:
        recipe: None for `float32`, which the import makes.
        signature: the version's, with a symbolic batch axis where the graph has one.
        job: id of the job that made it.
        max_batch_size: the most rows it may answer at once; 1 where a row's answer depends on its neighbours, None
            for no limit of its own.
    """

    model: str
    version: int
    name: str
    artifact: Artifact
    execution: Execution
    signature: Signature
    recipe: Single | None
    job: str
    created_at: datetime
    max_batch_size: int | None = None

    @property
    def key(self) -> tuple[str, int, str]:
        """What names it: model, version and name."""
        return self.model, self.version, self.name
