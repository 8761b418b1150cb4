"""The Open Inference Protocol's bodies (version 2, JSON), and what `/predict` documents of its own."""

from typing import Any

from pydantic import BaseModel, Field

from app.api.schemas.strict import StrictModel


class InferInput(StrictModel):
    """One input tensor; `data` is flat in row-major order, or nested."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: Any


class InferOutputChoice(StrictModel):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(StrictModel):
    """One prediction. `parameters` are taken and ignored, except those that ask for binary tensors."""

    id: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
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


class PredictAnswer(BaseModel):
    """One answer of `/predict`."""

    model: str
    version: int
    variant: str
    outputs: dict[str, PredictedTensor]
    queue_ms: float
    compute_ms: float


class InferOutput(BaseModel):
    """One output tensor, flat in row-major order."""

    name: str
    datatype: str
    shape: list[int]
    data: Any


class InferAnswer(BaseModel):
    """One answer of the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferOutput]
