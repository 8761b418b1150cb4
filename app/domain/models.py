"""Models: a named entry of the catalogue with numbered, immutable versions."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import Signature


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
    """

    name: str
    version: int
    file: str
    size_bytes: int
    sha256: str
    created_at: datetime
    job: str
    preprocessing: ImagePreprocessing | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFailure:
    """Why an upload could not be used."""

    code: str
    message: str
    failed_at: datetime
