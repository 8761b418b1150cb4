"""Finished trials of searches that have not published yet: whoever searches the same again goes on from them.

A search is named by what its trials depend on - model, rows, seed, metric, machine - not by a job, its budget or its
time limit: so a job that runs again after a crash takes them over, and so does a new job after a cancel.
"""

import logging
from typing import BinaryIO

from app.catalogue.records import from_json, to_json
from app.catalogue.store import Store
from app.domain.errors import RecordUnreadable, StoreUnavailable
from app.domain.evidence import LayerSensitivity
from app.domain.search import StoredTrial

log = logging.getLogger(__name__)

_SENSITIVITY = ".layers.json"


class Trials:
    """The trials of one search, below `searches/<key>/`.

    Args:
        key: hex digits that name the search.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._folder = f"searches/{key}"

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
            except RecordUnreadable as error:
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

    async def sensitivity(self, base: str) -> tuple[LayerSensitivity, ...] | None:
        """Return what was measured of the layers of a trial; None if nothing was."""
        data = await self._store.read(path := f"{self._folder}/{base}{_SENSITIVITY}")
        return tuple(from_json(list[LayerSensitivity], data, path=path)) if data is not None else None

    async def keep_sensitivity(self, base: str, layers: tuple[LayerSensitivity, ...]) -> None:
        """Keep what was measured of the layers of a trial."""
        rows = b",".join(to_json(layer) for layer in layers)
        await self._store.create(f"{self._folder}/{base}{_SENSITIVITY}", b"[" + rows + b"]")

    async def drop(self) -> None:
        """Delete the search: its trials are in the report now, and the artifact that won is published."""
        await self._store.delete(self._folder)
