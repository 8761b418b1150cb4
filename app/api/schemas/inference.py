"""The Open Inference Protocol's bodies, and what `/predict` gives, for the documentation.

What is read here for every request is in `app.api.infer_requests` and `app.api.infer_answers`.
"""

from typing import Any

from pydantic import BaseModel, Field

from app.api.schemas.strict import StrictModel


class InferInput(StrictModel):
    """One input tensor; `data` is flat in row-major order, or nested."""

    name: str
    shape: list[int]
    datatype: str = Field(description="`BOOL` to `FP64`, `FP16`, `BF16`; `BYTES` for encoded images, in binary alone.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="`binary_data_size`: how many bytes behind the JSON are this input's."
    )
    data: Any = None


class InferOutputChoice(StrictModel):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="`binary_data`: as bytes; `classification`: so many best classes instead."
    )


class InferRequest(StrictModel):
    """One prediction."""

    id: str | None = None
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="`binary_data_output`, `priority`, `timeout` (microseconds, 0 for none); others are ignored.",
    )
    inputs: list[InferInput] = Field(min_length=1)
    outputs: list[InferOutputChoice] | None = None


class TensorMetadata(BaseModel):
    """One tensor of a model; -1 where a size may differ."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model is, in the protocol's words."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: dict[str, str] = Field(description="`max_batch_size`, where the variant has a limit of its own.")


class ServerMetadata(BaseModel):
    """What this server is, in the protocol's words."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """The server runs."""

    live: bool


class Ready(BaseModel):
    """The server can answer."""

    ready: bool


class ModelReady(BaseModel):
    """A model can answer: it is published, and is loaded on its first request."""

    name: str
    ready: bool


class PredictedTensor(BaseModel):
    """One output of `/predict`. NaN and infinities are null, for JSON has no such numbers."""

    dtype: str
    shape: list[int]
    data: Any


class ClassScore(BaseModel):
    """One class of one row of the first output; the score is the output's own value, a logit or whatever it is."""

    index: int
    label: str | None = Field(description="Null if the model has no labels.")
    score: float | None


class PredictAnswer(BaseModel):
    """One answer of `/predict`."""

    model: str
    version: int
    variant: str
    outputs: dict[str, PredictedTensor]
    queue_ms: float
    compute_ms: float
    top: list[list[ClassScore]] | None = Field(None, description="Every row's highest classes, if `top_k` asks.")


class InferOutput(BaseModel):
    """One output tensor, flat in row-major order, or as so many bytes behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = Field(default_factory=dict, description="`binary_data_size`, if it comes as bytes.")
    data: Any = None


class InferAnswer(BaseModel):
    """One answer of the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Who answered and how long it took: `octet_variant`, `octet_queue_ms`, …"
    )
    outputs: list[InferOutput]
