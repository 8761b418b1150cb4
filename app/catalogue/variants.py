"""Published variants of a model: artifact, report and, written last, the record that makes them visible."""

import logging
from dataclasses import replace
from typing import BinaryIO

from app.catalogue.records import from_json, to_json
from app.catalogue.store import Store
from app.domain.errors import NameTaken, RecordUnreadable, ReportNotFound, StoreUnavailable, VariantNotFound
from app.domain.reports import Report
from app.domain.serving import Servable
from app.domain.variants import Variant

log = logging.getLogger(__name__)


class Variants:
    """The variants of every version of every model."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, int, str], Variant] = {}

    def folder(self, model: str, version: int, name: str) -> str:
        """Return the path of one variant."""
        return f"models/{model}/{version}/variants/{name}"

    def artifact_path(self, variant: Variant | Servable) -> str:
        """Return the store path of a variant's artifact."""
        return f"{self.folder(variant.model, variant.version, variant.name)}/{variant.artifact.file}"

    async def publish(self, variant: Variant, *, artifact: BinaryIO, report: Report) -> Variant:
        """Write the files, then the record. Publishing again for the same job changes nothing.

        The artifact's and the report's names hold the artifact's SHA-256, so that two writers of one name cannot mix
        their files; the record, written create-only, decides.

        Raises:
            NameTaken: another job has published a variant of this name.
            StoreUnavailable: what was written is not what the record says.
        """
        published = await self._published(variant)
        if published is not None:
            return published
        folder = self.folder(variant.model, variant.version, variant.name)
        written = await self._store.write_file(f"{folder}/{variant.artifact.file}", artifact)
        if written.sha256 != variant.artifact.sha256:
            raise StoreUnavailable(
                f"The artifact of {variant.name!r} changed while it was published: run the job again."
            )
        await self._store.create(f"{folder}/{_report_file(variant)}", to_json(report))
        if await self._store.create(f"{folder}/variant.json", to_json(variant)):
            return variant
        published = await self._published(variant)
        if published is None:
            raise StoreUnavailable(f"The store refuses and lacks the record of {variant.name!r}: run the job again.")
        return published

    async def publish_numbered(self, variant: Variant, *, artifact: BinaryIO, report: Report) -> Variant:
        """Publish under the variant's name, or with `-2`, `-3`, … behind it when that is taken."""
        number, named = 1, variant
        while True:
            try:
                return await self.publish(named, artifact=artifact, report=report.renamed(named.name))
            except NameTaken:
                number += 1
                named = replace(variant, name=f"{variant.name}-{number}")

    async def _published(self, variant: Variant) -> Variant | None:
        """Return what the variant's own job has published under its name, None if the name is free.

        Raises:
            NameTaken: another job has published a variant of this name.
        """
        try:
            published = await self.get(variant.model, variant.version, variant.name)
        except VariantNotFound:
            return None
        if published.job != variant.job:
            raise NameTaken(
                f"{variant.model}:{variant.version} already has a variant {variant.name!r}: choose another."
            )
        return published

    async def get(self, model: str, version: int, name: str) -> Variant:
        """Return one variant.

        Raises:
            VariantNotFound: there is none.
        """
        key = (model, version, name)
        if key not in self._known:
            data = await self._store.read(path := f"{self.folder(*key)}/variant.json")
            if data is None:
                raise VariantNotFound(
                    f"{model}:{version} has no variant {name!r}: "
                    f"list them at /v1/models/{model}:{version}/variants, or quantize the model."
                )
            self._known[key] = from_json(Variant, data, path=path)
        return self._known[key]

    async def list(self, model: str, version: int) -> list[Variant]:
        """Return every published variant of a version that can be read, oldest first."""
        names = await self._store.folders(f"models/{model}/{version}/variants")
        found: list[Variant] = []
        for name in names:
            try:
                found.append(await self.get(model, version, name))
            except VariantNotFound:  # being written, or left by a writer that lost
                continue
            except RecordUnreadable as error:
                log.warning("%s", error)
        return sorted(found, key=lambda variant: variant.created_at)

    async def report(self, variant: Variant) -> Report:
        """Return what was measured about a variant."""
        folder = self.folder(variant.model, variant.version, variant.name)
        data = await self._store.read(path := f"{folder}/{_report_file(variant)}")
        if data is None:
            raise ReportNotFound(
                f"The report of {variant.model}:{variant.version}@{variant.name} is gone from the store: restore it "
                "from a backup, or evaluate the variant again."
            )
        return from_json(Report, data, path=path)


def _report_file(variant: Variant) -> str:
    return f"{variant.artifact.sha256[:16]}.report.json"
