"""What the API answers beyond the domain's own records, and how answers become records."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from app.domain.datasets import ArraySpec, DatasetFormat
from app.domain.errors import ModelNotReady, failure_of
from app.domain.jobs import JobError
from app.domain.models import ModelFormat, ReadyState
from app.domain.preprocessing import ImagePreprocessing
from app.domain.routing import Route
from app.domain.tensors import Signature

Array = npt.NDArray[np.generic]
Nested = Any  # lists of lists of numbers, as deep as the tensor has axes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What an import found out about a model; the fields are `ModelManifest`'s."""

    format: ModelFormat
    signature: Signature
    preprocessing: ImagePreprocessing | None
    original_batch: int | None
    parameters: int
    imported_at: datetime
    imported_with: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What an import found out about a dataset; the fields are `DatasetManifest`'s."""

    format: DatasetFormat
    rows: int
    arrays: tuple[ArraySpec, ...]
    labelled: bool
    classes: tuple[str, ...]
    labels: ArraySpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Uploaded:
    """One version of something uploaded.

    Attributes:
        import_job: id of the job that reads the upload.
        error: why the import failed, if it did.
    """

    name: str
    version: int
    state: ReadyState
    error: JobError | None
    file: str
    size_bytes: int
    sha256: str
    created_at: datetime
    import_job: str

    @property
    def reference(self) -> str:
        """`name:version`, as every other call takes it."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion(_Uploaded):
    """One version of a model; `manifest` is there once it is ready.

    Attributes:
        label_count: how many class names came with it; None if none did.
        labels: the names; None in a list of models.
    """

    manifest: ModelFacts | None
    label_count: int | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion(_Uploaded):
    """One version of a dataset; `manifest` is there once it is ready."""

    manifest: DatasetFacts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which variant answers for a model when the caller names none, and what was decided before."""

    current: Route
    history: tuple[Route, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether the service can answer, and the state of what it stands on."""

    status: str
    checks: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """One of the highest classes of a row.

    Attributes:
        label: its name; None if the model has no labels.
        score: what the output says, unchanged; None where it is not a number.
    """

    index: int
    label: str | None
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answer.

    Attributes:
        outputs: by the model's output names. bfloat16 comes as float32, for NumPy has none. JSON has no infinities:
            in an answer to one array or an image they come as NaN.
        queue_ms: waited for the runner.
        compute_ms: spent inside the engine.
        top: the highest classes of each row, best first, if they were asked for.
    """

    model: str
    version: int
    variant: str
    outputs: dict[str, Array]
    queue_ms: float
    compute_ms: float
    top: tuple[tuple[Class, ...], ...] | None = None

    @property
    def output(self) -> Array:
        """The first output."""
        return next(iter(self.outputs.values()))


Version = TypeVar("Version", ModelVersion, DatasetVersion)


def ready(uploaded: Version) -> Version:
    """Return an upload that is imported.

    Raises:
        OctetError: its import failed; the class is the one that its code names.
        ModelNotReady: its import goes on, or was cancelled.
    """
    if uploaded.error is not None:
        raise failure_of(uploaded.error.code, uploaded.error.message, otherwise=ModelNotReady)
    if uploaded.state is not ReadyState.READY:
        raise ModelNotReady(f"{uploaded.reference} is {uploaded.state}: wait for job {uploaded.import_job}.")
    return uploaded


def plain_file_name(reference: str) -> str:
    """Return a file name for an artifact that explains itself: `resnet20:3@int8` becomes `resnet20-3-int8.onnx`."""
    return re.sub("[:@]", "-", reference) + ".onnx"
