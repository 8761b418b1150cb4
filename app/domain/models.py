"""Models: a named entry of the catalogue with numbered, immutable versions."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.domain.errors import RequestInvalid
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import Signature

MOST_LABELS = 100_000
LONGEST_LABEL = 200


class ModelFormat(StrEnum):
    """What kinds of model file Octet takes."""

    TORCH_EXPORT = "pt2"
    ONNX = "onnx"
    ONNX_ZIP = "onnx_zip"


class ReadyState(StrEnum):
    """Where an uploaded model or dataset stands."""

    IMPORTING = "importing"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What was received, before anything read it.

    Attributes:
        file: the file's name inside the version's `upload/` folder: a plain name, never a path.
        sha256: of the bytes as received, 64 hex digits.
        job: id of the import job that reads it.
        labels: what a model's classes are called, in the order of its output.
    """

    name: str
    version: int
    file: str
    size_bytes: int
    sha256: str
    created_at: datetime
    job: str
    preprocessing: ImagePreprocessing | None = None
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None:
            _check_labels(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """What an import found out about one version of a model. Its presence in the store makes the model ready.

    Attributes:
        original_batch: the batch size the upload was fixed to, None if it was symbolic already.
        parameters: number of weights.
        imported_with: versions of the libraries that read it.
    """

    name: str
    version: int
    format: ModelFormat
    upload: Upload
    signature: Signature
    preprocessing: ImagePreprocessing | None
    original_batch: int | None
    parameters: int
    imported_at: datetime
    imported_with: dict[str, str]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """What the uploader calls the classes; whether they are as many as an output has is not checked."""
        return self.upload.labels


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFailure:
    """Why an upload could not be used."""

    code: str
    message: str
    failed_at: datetime


def _check_labels(labels: tuple[str, ...]) -> None:
    if not 1 <= len(labels) <= MOST_LABELS:
        raise RequestInvalid(f"There are {len(labels)} labels: send 1 to {MOST_LABELS}, one for each class.")
    for index, label in enumerate(labels):
        if not (0 < len(label) <= LONGEST_LABEL and label.isprintable()):
            raise RequestInvalid(f"Label {index} is not usable: write 1 to {LONGEST_LABEL} printable characters.")
