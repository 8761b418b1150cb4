"""Finished trials of searches that have not published yet: whoever searches the same again goes on from them.

A search is named by what its trials depend on - model, rows, seed, metric, machine - not by a job, its budget or its
time limit: so a job that runs again after a crash takes them over, and so does a new job after a cancel.
"""

import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from app.catalogue.records import from_json, to_json
from app.catalogue.store import Store
from app.domain.errors import InvalidInput, RecordUnreadable, StoreUnavailable, Unavailable
from app.domain.evidence import LayerSensitivity
from app.domain.search import StoredTrial

log = logging.getLogger(__name__)

KEPT = timedelta(days=7)
"""How long a search is kept after its last trial: who means to go on after a crash or a cancel does so within days, and
a search that nobody goes on with holds some tens of artifacts."""

_ROOT = "searches"
_SENSITIVITY = ".layers.json"


async def prune(store: Store, *, now: datetime) -> None:
    """Delete the searches that have kept nothing for a week; one that runs keeps a trial every few minutes.

    It costs one listing per search. What goes wrong is logged: no job fails for want of tidiness.
    """
    try:
        for key in await store.folders(_ROOT):
            newest = await store.newest(f"{_ROOT}/{key}")
            if newest is not None and now - newest > KEPT:
                await Trials(store, key).drop()
    except Unavailable as error:
        log.warning("old searches were not looked for: %s", error)


class Trials:
    """The trials of one search, below `searches/<key>/`.

    Args:
        key: hex digits that name the search.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._folder = f"{_ROOT}/{key}"

    def artifact_path(self, stored: StoredTrial) -> str:
        """Return the store path of a trial's artifact."""
        return f"{self._folder}/{stored.trial.artifact_sha256}.onnx"

    async def found(self) -> list[StoredTrial]:
        """Return every finished trial that can be read and whose artifact is there, in the order they ended."""
        names, read = set(await self._store.files(self._folder)), list[StoredTrial]()
        for name in names:
            if not name.endswith(".json") or name.endswith(_SENSITIVITY):
                continue
            path = f"{self._folder}/{name}"
            data = await self._store.read(path)
            try:
                read += [from_json(StoredTrial, data, path=path)] if data is not None else []
            except (RecordUnreadable, InvalidInput) as error:  # a recipe that this release no longer takes
                log.warning("%s", error)
        whole = [one for one in read if one.trial.failure is not None or f"{one.trial.artifact_sha256}.onnx" in names]
        return sorted(whole, key=lambda stored: stored.finished_at)

    async def keep(self, stored: StoredTrial, *, artifact: BinaryIO | None) -> None:
        """Write a finished trial: its artifact first, its record last.

        Args:
            artifact: None for a trial that failed.

        Raises:
            StoreUnavailable: what was written is not what the record says.
        """
        if artifact is not None:
            written = await self._store.write_file(self.artifact_path(stored), artifact)
            if written.sha256 != stored.trial.artifact_sha256:
                raise StoreUnavailable("A trial's artifact changed while it was stored: run the job again.")
        await self._store.create(f"{self._folder}/{stored.trial.key}.json", to_json(stored))

    async def fetch(self, stored: StoredTrial, to: Path) -> None:
        """Copy a trial's artifact into a local file.

        Raises:
            StoreUnavailable: the search was dropped meanwhile, or the copy is damaged.
        """
        path = self.artifact_path(stored)
        try:
            written = await self._store.fetch(path, to)
        except StoreUnavailable as error:
            if path.rsplit("/", 1)[-1] in await self._store.files(self._folder):
                raise
            raise StoreUnavailable("Another job finished the same search meanwhile: ask again.") from error
        if written.sha256 != stored.trial.artifact_sha256:
            raise StoreUnavailable("The store's copy of a trial's artifact is damaged: run the job again.")

    async def sensitivity(self, base: str) -> tuple[LayerSensitivity, ...] | None:
        """Return what was measured of the layers of a trial; None if nothing was."""
        data = await self._store.read(path := f"{self._folder}/{base}{_SENSITIVITY}")
        return tuple(from_json(list[LayerSensitivity], data, path=path)) if data is not None else None

    async def keep_sensitivity(self, base: str, layers: tuple[LayerSensitivity, ...]) -> None:
        """Keep what was measured of the layers of a trial."""
        rows = b",".join(to_json(layer) for layer in layers)
        await self._store.create(f"{self._folder}/{base}{_SENSITIVITY}", b"[" + rows + b"]")

    async def drop(self) -> None:
        """Delete the search: its trials are in the report now, and the artifact that won is published.

        What cannot be deleted now, because the store is away or another job deletes it too, `prune` deletes later.
        """
        try:
            await self._store.delete(self._folder)
        except Unavailable as error:
            log.warning("%s was not deleted: %s", self._folder, error)
