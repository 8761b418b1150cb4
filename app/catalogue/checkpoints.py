"""What a training that has not ended keeps in the store: what it began from, and its newest states.

Whoever takes the job over after its worker was lost goes on from there. A state is bytes that a confined process wrote;
nobody here reads them.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from app.catalogue.history import JobHistory
from app.catalogue.records import from_json, to_json
from app.catalogue.store import CHUNK_BYTES, Store, Written
from app.domain.errors import OctetError, RecordUnreadable, StoreUnavailable, UploadTooLarge
from app.domain.variants import Execution

log = logging.getLogger(__name__)

KEPT = timedelta(days=7)
"""How long what a job left behind is kept that nobody has finished."""

MOST_STATES = 2
"""The newest, and the one before: a store may yet lose the newest."""

_ROOT = "checkpoints"
_STARTS, _RECORD, _STATE = "starts", "record.json", "state.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One state of a training, whole in the store once this record is there.

    Attributes:
        starts: SHA-256 of the artifacts that this training began from, in their order.
    """

    step: int
    sha256: str
    size_bytes: int
    starts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptStart:
    """What is known of an artifact to begin from, besides its bytes; named by its recipe's `summary`."""

    recipe: str
    sha256: str
    execution: Execution
    libraries: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptStarts:
    """All artifacts that a training began from, in their order."""

    starts: tuple[KeptStart, ...]


async def prune(store: Store, history: JobHistory, *, now: datetime) -> None:
    """Delete what jobs left behind that are final, or that have kept nothing for a week.

    A job that is cancelled is killed, and cannot tidy up itself. What goes wrong is logged: no job fails for want of
    tidiness.
    """
    try:
        for job in await store.folders(_ROOT):
            newest = await Checkpoints(store, job).newest()
            old = newest is not None and now - newest > KEPT
            if old or await history.get(job) is not None:
                await Checkpoints(store, job).drop()
    except OctetError as error:
        log.warning("old checkpoints were not looked for: %s", error)


class Checkpoints:
    """What the store keeps of one job's training, below `checkpoints/<job>/`: a folder for each state, one for starts.

    In each, the record is written last: a reader sees a whole state, or none.
    """

    def __init__(self, store: Store, job: str) -> None:
        self._store = store
        self._folder = f"{_ROOT}/{job}"

    async def keep(self, step: int, file: BinaryIO, *, starts: tuple[str, ...], limit_bytes: int) -> State:
        """Store a state and delete all but the newest two.

        Args:
            file: open at any place; it may grow and change while it is read, which is noticed.

        Raises:
            UploadTooLarge: it is larger than `limit_bytes`.
            StoreUnavailable: the store does not answer, or what was written is not what was read before.
            StoreFull: there is no room; the states before it stay.
        """
        known = await asyncio.to_thread(_hashed, file, limit_bytes)
        state = State(step=step, sha256=known.sha256, size_bytes=known.size_bytes, starts=starts)
        folder = self._folder_of(state)
        file.seek(0)
        written = await self._store.write(f"{folder}/{_STATE}", _chunks(file, known.size_bytes), limit=limit_bytes)
        if written != known:
            await self._store.delete(folder)
            raise StoreUnavailable(f"The checkpoint of step {step} changed while it was stored.")
        await self._store.create(f"{folder}/{_RECORD}", to_json(state))
        await self._delete_older()
        return state

    async def fetch(self, to: Path, *, starts: tuple[str, ...]) -> State | None:
        """Copy the newest state that is whole, and began from these, into a local file; None if there is none.

        What lies in the file then is of no use.

        Raises:
            StoreUnavailable: the store does not answer at all.
            StoreFull: the local disk is full.
        """
        for name in await self._states():
            state = await self._record(f"{self._folder}/{name}")
            if state is None or state.starts != starts:
                continue
            try:
                copied = await self._store.fetch(f"{self._folder}/{name}/{_STATE}", to)
            except StoreUnavailable as error:  # deleted meanwhile, or lost
                log.warning("the checkpoint %s cannot be read: %s", name, error)
                continue
            if (copied.sha256, copied.size_bytes) == (state.sha256, state.size_bytes):
                return state
            log.warning("the checkpoint %s is damaged: the one before is looked for", name)
        return None

    async def keep_starts(self, starts: KeptStarts, files: list[Path]) -> None:
        """Store the artifacts to begin from, and then what is known of them.

        Raises:
            StoreUnavailable: what was written is not what the records say.
        """
        for start, path in zip(starts.starts, files, strict=True):
            with path.open("rb") as file:
                written = await self._store.write_file(self._start_path(start), file)
            if written.sha256 != start.sha256:
                raise StoreUnavailable("An artifact to begin from changed while it was stored.")
        await self._store.create(f"{self._folder}/{_STARTS}/{_RECORD}", to_json(starts))

    async def starts(self) -> KeptStarts | None:
        """Return what is known of the artifacts to begin from; None if they are not all there."""
        data = await self._store.read(path := f"{self._folder}/{_STARTS}/{_RECORD}")
        try:
            return from_json(KeptStarts, data, path=path) if data is not None else None
        except RecordUnreadable as error:
            log.warning("%s", error)
            return None

    async def fetch_start(self, start: KeptStart, to: Path) -> None:
        """Copy an artifact to begin from into a local file.

        Raises:
            StoreUnavailable: it is lost or damaged.
        """
        written = await self._store.fetch(self._start_path(start), to)
        if written.sha256 != start.sha256:
            raise StoreUnavailable("The store's copy of an artifact to begin from is damaged.")

    async def newest(self) -> datetime | None:
        """Return when something was kept last; None if nothing is there."""
        folders = await self._store.folders(self._folder)
        times = [await self._store.newest(f"{self._folder}/{name}") for name in folders]
        return max((time for time in times if time is not None), default=None)

    async def drop(self) -> None:
        """Delete everything: the job is final. What cannot be deleted now, `prune` deletes later."""
        try:
            await self._store.delete(self._folder)
        except OctetError as error:
            log.warning("%s was not deleted: %s", self._folder, error)

    async def _delete_older(self) -> None:
        """Delete the states before the newest two, and what is left of uploads broken off before them."""
        whole = 0
        for name in await self._states():
            folder = f"{self._folder}/{name}"
            if whole == MOST_STATES:
                await self._store.delete(folder)
            whole += whole < MOST_STATES and _RECORD in await self._store.files(folder)

    async def _states(self) -> list[str]:
        """Return the names of the folders of states, the newest step first."""
        names = await self._store.folders(self._folder)
        return sorted((name for name in names if name != _STARTS), reverse=True)

    async def _record(self, folder: str) -> State | None:
        data = await self._store.read(path := f"{folder}/{_RECORD}")
        try:
            return from_json(State, data, path=path) if data is not None else None
        except RecordUnreadable as error:
            log.warning("%s", error)
            return None

    def _folder_of(self, state: State) -> str:
        return f"{self._folder}/{state.step:015d}-{state.sha256[:16]}"

    def _start_path(self, start: KeptStart) -> str:
        return f"{self._folder}/{_STARTS}/{start.sha256}.onnx"


def _hashed(file: BinaryIO, limit_bytes: int) -> Written:
    digest, size = hashlib.sha256(), 0
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        size += len(chunk)
        if size > limit_bytes:
            raise UploadTooLarge(f"A checkpoint is larger than {limit_bytes:,} bytes, all that a job may write.")
        digest.update(chunk)
    return Written(size_bytes=size, sha256=digest.hexdigest())


async def _chunks(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """Read in a thread: training goes on meanwhile, and whoever follows the job is told of it."""
    while size > 0 and (chunk := await asyncio.to_thread(file.read, min(size, CHUNK_BYTES))):
        size -= len(chunk)
        yield chunk
