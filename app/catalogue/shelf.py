"""A shelf: named uploads with numbered, immutable versions. Models stand on one, datasets on another."""

import logging
from collections.abc import AsyncIterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from app.catalogue.records import from_json, to_json
from app.catalogue.store import Store, Written
from app.domain.datasets import DatasetManifest
from app.domain.errors import (
    DatasetNotFound,
    EmptyUpload,
    ModelNotFound,
    ModelNotReady,
    NotFound,
    RecordUnreadable,
    failure_of,
)
from app.domain.jobs import Job, JobError, JobKind, JobState
from app.domain.models import ImportFailure, ModelManifest, ReadyState, Upload
from app.domain.names import Reference, check_name

Manifest = TypeVar("Manifest", ModelManifest, DatasetManifest)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[Manifest]):
    """One version as the store has it."""

    upload: Upload
    manifest: Manifest | None = None
    failure: ImportFailure | None = None

    @property
    def state(self) -> ReadyState:
        if self.manifest is not None:
            return ReadyState.READY
        return ReadyState.FAILED if self.failure is not None else ReadyState.IMPORTING

    def ready(self) -> Manifest:
        """Return the manifest.

        Raises:
            ModelNotReady: the import has not ended, or failed.
        """
        if self.manifest is not None:
            return self.manifest
        if self.failure is not None:
            raise ModelNotReady(self._reason(self.failure))
        raise ModelNotReady(f"{self._label} is still being imported: wait for job {self.upload.job}.")

    def imported(self) -> Manifest:
        """Return the manifest to a job that waited for it, and fails as the import did.

        Raises:
            OctetError: the import failed; the class is the one that its code names.
            ModelNotReady: the import has not ended, or was cancelled.
        """
        if self.failure is not None and self.manifest is None:
            raise failure_of(self.failure.code, self._reason(self.failure), otherwise=ModelNotReady)
        return self.ready()

    @property
    def _label(self) -> str:
        return f"{self.upload.name}:{self.upload.version}"

    def _reason(self, failure: ImportFailure) -> str:
        return f"{self._label} could not be imported: {failure.message}"


class Shelf(Generic[Manifest]):
    """The versions of every name below one root of the store."""

    def __init__(self, store: Store, *, root: str, manifest: type[Manifest], missing: type[NotFound]) -> None:
        self._store = store
        self._root = root
        self._manifest: type[Manifest] = manifest
        self._missing = missing
        self._final: dict[tuple[str, int], Entry[Manifest]] = {}

    def folder(self, name: str, version: int) -> str:
        """Return the path of one version."""
        return f"{self._root}/{name}/{version}"

    async def reserve(self, name: str) -> int:
        """Claim the next version number of `name`; two callers never get the same."""
        check_name(name)
        version = max(await self._numbers(name), default=0) + 1
        while not await self._store.create(f"{self.folder(name, version)}/claim", b""):
            version += 1
        return version

    async def receive(self, name: str, version: int, *, file: str, chunks: AsyncIterable[bytes], limit: int) -> Written:
        """Stream an upload into a claimed version.

        Raises:
            UploadTooLarge, EmptyUpload: and nothing is left behind.
        """
        written = await self._store.write(f"{self.folder(name, version)}/upload/{file}", chunks, limit=limit)
        if written.size_bytes == 0:
            raise EmptyUpload(f"The file for {name!r} is empty: send the model's or the dataset's bytes.")
        return written

    async def record(self, upload: Upload) -> None:
        """Make a received upload visible."""
        await self._store.create(f"{self.folder(upload.name, upload.version)}/upload.json", to_json(upload))

    async def abandon(self, name: str, version: int) -> None:
        """Remove every trace of a version whose upload failed."""
        await self._store.delete(self.folder(name, version))

    async def publish(self, manifest: Manifest) -> None:
        """Make a version ready. A second writer changes nothing."""
        folder = self.folder(manifest.name, manifest.version)
        await self._store.create(f"{folder}/manifest.json", to_json(manifest))

    async def fail(self, name: str, version: int, failure: ImportFailure) -> None:
        """Make a version failed, for good."""
        await self._store.create(f"{self.folder(name, version)}/failure.json", to_json(failure))

    async def get(self, name: str, version: int) -> Entry[Manifest]:
        """Return one version.

        Raises:
            ModelNotFound, DatasetNotFound: there is none.
        """
        known = self._final.get((name, version))
        if known is not None:
            return known
        entry = await self._load(name, version)
        if entry is None:
            raise self._missing(f"There is no {self._root[:-1]} {name}:{version}: list them at /v1/{self._root}.")
        if entry.state is not ReadyState.IMPORTING:
            self._final[name, version] = entry
        return entry

    async def resolve(self, reference: Reference) -> Entry[Manifest]:
        """Return the version meant: the one named, else the newest that is ready, else the newest."""
        if reference.version is not None:
            return await self.get(reference.name, reference.version)
        newest: Entry[Manifest] | None = None
        for version in sorted(await self._numbers(reference.name), reverse=True):
            entry = await self._find(reference.name, version)
            if entry is not None and entry.state is ReadyState.READY:
                return entry
            newest = newest or entry
        if newest is None:
            raise self._missing(f"There is no {self._root[:-1]} {reference.name!r}: list them at /v1/{self._root}.")
        return newest

    async def names(self) -> list[str]:
        """Return every name, sorted."""
        return sorted(await self._store.folders(self._root))

    async def versions(self, name: str) -> list[Entry[Manifest]]:
        """Return every version of `name` that can be read, oldest first."""
        found = [await self._find_readable(name, version) for version in sorted(await self._numbers(name))]
        return [entry for entry in found if entry is not None]

    def upload_path(self, entry: Entry[Manifest]) -> str:
        """Return the store path of the upload itself."""
        return f"{self.folder(entry.upload.name, entry.upload.version)}/upload/{entry.upload.file}"

    async def _numbers(self, name: str) -> list[int]:
        return [int(folder) for folder in await self._store.folders(f"{self._root}/{name}") if folder.isdigit()]

    async def _find(self, name: str, version: int) -> Entry[Manifest] | None:
        try:
            return await self.get(name, version)
        except NotFound:
            return None

    async def _find_readable(self, name: str, version: int) -> Entry[Manifest] | None:
        try:
            return await self._find(name, version)
        except RecordUnreadable as error:
            log.warning("%s", error)
            return None

    async def _load(self, name: str, version: int) -> Entry[Manifest] | None:
        folder = self.folder(name, version)
        upload = await self._store.read(f"{folder}/upload.json")
        if upload is None:
            return None
        manifest = await self._store.read(f"{folder}/manifest.json")
        failure = None if manifest else await self._store.read(f"{folder}/failure.json")
        return Entry(
            upload=from_json(Upload, upload, path=f"{folder}/upload.json"),
            manifest=from_json(self._manifest, manifest, path=f"{folder}/manifest.json") if manifest else None,
            failure=from_json(ImportFailure, failure, path=f"{folder}/failure.json") if failure else None,
        )


def model_shelf(store: Store) -> Shelf[ModelManifest]:
    """Return the shelf of models."""
    return Shelf(store, root="models", manifest=ModelManifest, missing=ModelNotFound)


def dataset_shelf(store: Store) -> Shelf[DatasetManifest]:
    """Return the shelf of datasets."""
    return Shelf(store, root="datasets", manifest=DatasetManifest, missing=DatasetNotFound)


async def fail_upload(job: Job, *, models: Shelf[ModelManifest], datasets: Shelf[DatasetManifest]) -> None:
    """Let an upload fail with the import job that should have read it; other jobs concern no upload."""
    if job.kind is not JobKind.IMPORT or job.state is JobState.SUCCEEDED:
        return
    error = job.error or JobError(code="cancelled", message="The import was cancelled: upload the file again.")
    failure = ImportFailure(code=error.code, message=error.message, failed_at=datetime.now(UTC))
    reference = Reference.parse(job.model or job.dataset or "")
    shelf = models if job.subject == "model" else datasets
    await shelf.fail(reference.name, reference.version or 0, failure)
