"""Models, datasets, variants and routing as the API shows them."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, Field, Strict

from app.api.schemas.strict import StrictModel
from app.catalogue.shelf import Entry
from app.domain.datasets import ArraySpec, DatasetFormat, DatasetManifest
from app.domain.models import ModelFormat, ModelManifest, ReadyState
from app.domain.preprocessing import ImagePreprocessing
from app.domain.routing import Route
from app.domain.tensors import Signature
from app.domain.variants import Variant


class ImportFailed(BaseModel):
    """Why an import failed."""

    code: str
    message: str


class ModelFacts(BaseModel):
    """What an import found out about a model."""

    format: ModelFormat
    signature: Signature
    preprocessing: ImagePreprocessing | None
    original_batch: int | None = Field(description="The batch size the upload was fixed to; null if it was symbolic.")
    parameters: int
    imported_at: datetime
    imported_with: dict[str, str]


class DatasetFacts(BaseModel):
    """What an import found out about a dataset."""

    format: DatasetFormat
    rows: int
    arrays: tuple[ArraySpec, ...]
    labelled: bool
    classes: tuple[str, ...]
    labels: ArraySpec | None = Field(None, description="What the labels are, as an array; null if there are none.")


class Uploaded(BaseModel):
    """One version of something uploaded."""

    name: str
    version: int
    state: ReadyState
    error: ImportFailed | None
    file: str
    size_bytes: int
    sha256: str
    created_at: datetime
    import_job: str


class ModelVersion(Uploaded):
    """One version of a model."""

    manifest: ModelFacts | None
    label_count: int | None = Field(None, description="How many class names came with it; null if none did.")
    labels: tuple[str, ...] | None = Field(None, description="The class names; null in lists, which only count them.")

    @classmethod
    def of(cls, entry: Entry[ModelManifest]) -> Self:
        return cls.listed(entry).model_copy(update={"labels": entry.upload.labels})

    @classmethod
    def listed(cls, entry: Entry[ModelManifest]) -> Self:
        """Describe a version among others, without the names of its classes: they can be many."""
        manifest, labels = entry.manifest, entry.upload.labels
        facts = None if manifest is None else ModelFacts.model_validate(manifest, from_attributes=True)
        return cls(manifest=facts, label_count=None if labels is None else len(labels), **_uploaded(entry))


class DatasetVersion(Uploaded):
    """One version of a dataset."""

    manifest: DatasetFacts | None

    @classmethod
    def of(cls, entry: Entry[DatasetManifest]) -> Self:
        manifest = entry.manifest
        facts = None if manifest is None else DatasetFacts.model_validate(manifest, from_attributes=True)
        return cls(manifest=facts, **_uploaded(entry))


class ModelList(BaseModel):
    """The newest version of every model."""

    models: list[ModelVersion]


class DatasetList(BaseModel):
    """The newest version of every dataset."""

    datasets: list[DatasetVersion]


class VariantList(BaseModel):
    """The published variants of one version."""

    variants: list[Variant]


class ModelUploadQuery(StrictModel):
    """What comes with a model that is sent as the raw body."""

    name: str | None = None
    filename: str | None = None
    preprocessing: str | None = Field(None, description="How an image becomes its input, as JSON.")


class RouteRequest(StrictModel):
    """Which variant is to answer when a caller names none: one of them, or several by weights."""

    version: int = Field(ge=1)
    variant: str | None = None
    weights: dict[str, Annotated[float, Strict()]] | None = Field(
        None, description="By variant; proportions, which need not sum up to 1. At most 16, at least one above 0."
    )
    by: str | None = Field(None, description="Who decides; else the client's address.")
    note: str | None = Field(None, description="Why.")


class RoutingState(BaseModel):
    """Which variant answers, and every decision that led there, oldest first.

    As long as nothing was decided, `current` has number 0 and names the newest ready version's `float32`.
    """

    current: Route
    history: list[Route]


class RunnerState(BaseModel):
    """Whether a variant's runner is up in the process that answered."""

    state: str


def _uploaded(entry: Entry[ModelManifest] | Entry[DatasetManifest]) -> dict[str, object]:
    upload, failure = entry.upload, entry.failure
    return {
        "name": upload.name,
        "version": upload.version,
        "state": entry.state,
        "error": None if failure is None else ImportFailed(code=failure.code, message=failure.message),
        "file": upload.file,
        "size_bytes": upload.size_bytes,
        "sha256": upload.sha256,
        "created_at": upload.created_at,
        "import_job": upload.job,
    }
