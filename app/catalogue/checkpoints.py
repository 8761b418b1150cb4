"""What a training that has not ended keeps in the store: what it began from, and its newest states.

Whoever takes the job over after its worker was lost goes on from there. A state is bytes that a confined process wrote;
nobody here reads them. What a later attempt kept is newer, whatever its step: it may have begun anew.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, TypeVar

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

Record = TypeVar("Record")

_ROOT = "checkpoints"
_STARTS, _RECORD, _STATE = "starts", "record.json", "state.safetensors"
_NAME = re.compile(r"\d{6}-\d{15}-[0-9a-f]{16}")
"""Of a state's folder: attempt, step, and what its hash begins with."""


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

    Args:
        attempt: the attempt at the job that keeps something.
    """

    def __init__(self, store: Store, job: str, *, attempt: int = 1) -> None:
        self._store = store
        self._attempt = attempt
        self._folder = f"{_ROOT}/{job}"

    async def keep(self, step: int, file: BinaryIO, *, starts: tuple[str, ...], limit_bytes: int) -> State:
        """Store a state and delete all but the newest two, and those that began from something else.

        Args:
            file: open at any place; it may grow and change while it is read, which is noticed.

        Raises:
            UploadTooLarge: it is larger than `limit_bytes`.
            StoreUnavailable: the store does not answer, or what was written is not what was read before, or another
                process stores the same state.
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
        created = await self._store.create(f"{folder}/{_RECORD}", to_json(state))
        if not created and await self._record(State, folder) != state:
            raise StoreUnavailable(f"Another process has stored the checkpoint of step {step}.")
        await self._delete_older(starts)
        return state

    async def fetch(self, to: Path, *, starts: tuple[str, ...]) -> State | None:
        """Copy the newest state that is whole, and began from these, into a local file; None if there is none.

        What lies in the file then is of no use.

        Raises:
            StoreUnavailable: the store does not answer; a state that is lost or damaged gives way to the one before.
            StoreFull: the local disk is full.
        """
        for name in await self._states():
            folder = f"{self._folder}/{name}"
            state = await self._whole(folder)
            if state is None or state.starts != starts:
                continue
            copied = await self._copied(f"{folder}/{_STATE}", to)
            if copied == Written(size_bytes=state.size_bytes, sha256=state.sha256):
                return state
            log.warning("the checkpoint %s is lost or damaged: the one before is looked for", name)
        return None

    async def keep_starts(self, starts: KeptStarts, files: list[Path]) -> None:
        """Store the artifacts to begin from in the place of others, and then what is known of them.

        Raises:
            StoreUnavailable: what was written is not what the records say, or another process stores others.
        """
        known = await self.starts()
        if known != starts:
            await self._store.delete(f"{self._folder}/{_STARTS}")
        for start, path in zip(starts.starts, files, strict=True):
            with path.open("rb") as file:
                written = await self._store.write_file(self._start_path(start), file)
            if written.sha256 != start.sha256:
                raise StoreUnavailable("An artifact to begin from changed while it was stored.")
        if not await self._store.create(f"{self._folder}/{_STARTS}/{_RECORD}", to_json(starts)) and known != starts:
            raise StoreUnavailable("Another process has stored other artifacts to begin from.")

    async def starts(self) -> KeptStarts | None:
        """Return what is known of the artifacts to begin from; None if they are not all there."""
        return await self._record(KeptStarts, f"{self._folder}/{_STARTS}")

    async def fetch_start(self, start: KeptStart, to: Path) -> bool:
        """Copy an artifact to begin from into a local file; return False if it is lost or damaged."""
        written = await self._copied(self._start_path(start), to)
        return written is not None and written.sha256 == start.sha256

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

    async def _delete_older(self, starts: tuple[str, ...]) -> None:
        """Delete the states before the newest two, what is left of uploads broken off before them, and what began
        from something else: nobody will go on from there. A later attempt's are left alone: this one was taken for lost
        then.
        """
        whole = 0
        for name in await self._states():
            if int(name.split("-")[0]) > self._attempt:
                continue
            folder = f"{self._folder}/{name}"
            state = await self._whole(folder) if whole < MOST_STATES else None
            if whole == MOST_STATES or (state is not None and state.starts != starts):
                await self._store.delete(folder)
            elif state is not None:
                whole += 1

    async def _states(self) -> list[str]:
        """Return the names of the folders of states, the newest first."""
        return sorted(filter(_NAME.fullmatch, await self._store.folders(self._folder)), reverse=True)

    async def _whole(self, folder: str) -> State | None:
        """Return what is known of a state; None if its bytes or its record are not there."""
        return await self._record(State, folder) if {_RECORD, _STATE} <= set(await self._store.files(folder)) else None

    async def _copied(self, path: str, to: Path) -> Written | None:
        """Copy an object into a local file; None if it is not there: that is told apart from a store that is away."""
        try:
            return await self._store.fetch(path, to)
        except StoreUnavailable:
            folder, name = path.rsplit("/", 1)
            if name in await self._store.files(folder):
                raise
            return None

    async def _record(self, kind: type[Record], folder: str) -> Record | None:
        data = await self._store.read(path := f"{folder}/{_RECORD}")
        try:
            return from_json(kind, data, path=path) if data is not None else None
        except RecordUnreadable as error:
            log.warning("%s", error)
            return None

    def _folder_of(self, state: State) -> str:
        return f"{self._folder}/{self._attempt:06d}-{state.step:015d}-{state.sha256[:16]}"

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
