"""The store: a folder or a bucket behind `obstore`, with Octet's errors. Knows paths and bytes, no records."""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store

from app.domain.errors import StoreFull, StoreUnavailable, UploadTooLarge

if TYPE_CHECKING:
    from obstore import AsyncWritableFile

CHUNK_BYTES = 2**20
LIMIT = "OCTET_MAX_UPLOAD_BYTES"

_PART_BYTES = 8 * 2**20  # S3 takes no smaller parts than 5 MiB; two may be on their way at once


class S3Options(Protocol):
    """Where an S3-compatible store is and how to enter it."""

    @property
    def endpoint_url(self) -> str | None: ...
    @property
    def region(self) -> str: ...
    @property
    def access_key_id(self) -> str | None: ...
    @property
    def secret_access_key(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a stream turned out to be: its bytes and their SHA-256 in hex."""

    size_bytes: int
    sha256: str


class Store:
    """Immutable objects under `/`-separated paths.

    Every method raises `StoreUnavailable` when the store does not answer and `StoreFull` when it has no room.
    """

    def __init__(self, objects: LocalStore | S3Store) -> None:
        self._objects = objects
        self._folder = objects.prefix if isinstance(objects, LocalStore) else None

    async def read(self, path: str) -> bytes | None:
        """Return an object's bytes, or None if there is none."""
        with _translated():
            try:
                answer = await obstore.get_async(self._objects, path)
            except FileNotFoundError:
                return None
            return bytes(await answer.bytes_async())

    async def create(self, path: str, data: bytes) -> bool:
        """Write an object that must not exist yet; return False if it does."""
        with _translated():
            try:
                await obstore.put_async(self._objects, path, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    async def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below `prefix`."""
        with _translated():
            listing = await obstore.list_with_delimiter_async(self._objects, f"{prefix}/")
        return [path.rsplit("/", 1)[-1] for path in listing["common_prefixes"]]

    async def files(self, prefix: str) -> list[str]:
        """Return the names of the objects directly below `prefix`."""
        with _translated():
            listing = await obstore.list_with_delimiter_async(self._objects, f"{prefix}/")
        return [str(item["path"]).rsplit("/", 1)[-1] for item in listing["objects"]]

    async def newest(self, prefix: str) -> datetime | None:
        """Return when the newest of the objects directly below `prefix` was written; None if there are none."""
        with _translated():
            listing = await obstore.list_with_delimiter_async(self._objects, f"{prefix}/")
        return max((item["last_modified"] for item in listing["objects"]), default=None)

    async def write(self, path: str, chunks: AsyncIterable[bytes], *, limit: int | None = None) -> Written:
        """Stream an object in, hashing on the way, in memory that does not grow with its size.

        Raises:
            UploadTooLarge: more than `limit` bytes came. Nothing is left behind, as after any other error.
        """
        digest, size = hashlib.sha256(), 0
        opened = obstore.open_writer_async(self._objects, path, buffer_size=_PART_BYTES, max_concurrency=2)
        async with _Writer(opened) as writer:
            async for chunk in chunks:
                size += len(chunk)
                if limit is not None and size > limit:
                    raise UploadTooLarge(too_large(limit))
                digest.update(chunk)
                await writer.write(chunk)
        return Written(size_bytes=size, sha256=digest.hexdigest())

    async def write_file(self, path: str, file: BinaryIO) -> Written:
        """Stream an open file in, from its beginning."""
        file.seek(0)
        return await self.write(path, _chunks_of(file))

    async def stream(self, path: str, *, start: int = 0, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` up to, not including, `end`.

        Raises:
            StoreUnavailable: also when the object is missing, which its record says it is not.
        """
        with _translated(), _not_lost(path):
            answer = await obstore.get_async(self._objects, path, options={"range": (start, end)})
            async for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    async def fetch(self, path: str, to: Path) -> Written:
        """Copy an object into a local file; return what was read.

        Raises:
            StoreUnavailable: also when the object is missing, which its record says it is not.
            StoreFull: also when it is the local disk that is full; the message says which.
        """
        digest, size = hashlib.sha256(), 0
        with on_local_disk(to.parent), to.open("wb") as file:
            async for chunk in self._whole(path):
                digest.update(chunk)
                size += file.write(chunk)
        return Written(size_bytes=size, sha256=digest.hexdigest())

    async def _whole(self, path: str) -> AsyncIterator[bytes]:
        with _translated(), _not_lost(path):
            answer = await obstore.get_async(self._objects, path)
            async for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    async def delete(self, prefix: str) -> None:
        """Delete every object below `prefix`, and the folders that an upload broken off has left there."""
        with _translated():
            async for batch in obstore.list(self._objects, f"{prefix}/"):
                await obstore.delete_async(self._objects, [item["path"] for item in batch])
        if self._folder is not None:
            await asyncio.to_thread(_remove_empty, self._folder / prefix, below=self._folder)

    async def check(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        with _translated():
            await obstore.list_with_delimiter_async(self._objects, "models/")


def open_store(url: str, *, s3: S3Options | None = None) -> Store:
    """Open `s3://bucket/prefix`, or a folder, which is made if it is missing."""
    scheme, separator, _ = url.partition("://")
    if separator and scheme != "s3":
        raise StoreUnavailable(f"{url!r} is no store: name a folder, or s3://bucket/prefix (OCTET_STORE_URL).")
    if not separator:
        return Store(_folder(Path(url).absolute()))
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    chosen: dict[str, str] = {}
    if s3 is not None:
        named = {
            "endpoint": s3.endpoint_url,
            "region": s3.region,
            "access_key_id": s3.access_key_id,
            "secret_access_key": s3.secret_access_key,
        }
        chosen = {key: value for key, value in named.items() if value is not None}
    plain_http = chosen.get("endpoint", "").startswith("http://")
    bucket_store = S3Store(
        bucket,
        prefix=prefix or None,
        client_options={"allow_http": plain_http},
        **chosen,  # type: ignore[arg-type]
    )
    return Store(bucket_store)


def too_large(limit: int) -> str:
    """Return the sentence about a file over the limit, for whoever notices it."""
    return f"The file is larger than {limit} bytes, the limit of one file: send a smaller one, or raise {LIMIT}."


class _Writer:
    """The library's writer with Octet's errors; what is raised inside the block stays what it is."""

    def __init__(self, opened: "AsyncWritableFile") -> None:
        self._file = opened

    async def __aenter__(self) -> Self:
        with _translated():
            await self._file.__aenter__()
        return self

    async def write(self, chunk: bytes) -> None:
        with _translated():
            await self._file.write(chunk)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _translated():
            await self._file.__aexit__(kind, error, trace)


def _folder(path: Path) -> LocalStore:
    try:
        return LocalStore(prefix=path, automatic_cleanup=True, mkdir=True)
    except (BaseError, OSError) as error:
        raise StoreUnavailable(
            f"The store's folder {path} cannot be opened: set OCTET_STORE_URL or OCTET_DATA_DIR to one that can."
        ) from error


def _remove_empty(folder: Path, *, below: Path) -> None:
    """Remove a folder and the folders in and above it, as far as they are empty."""
    inside = [Path(path) for path, _, _ in os.walk(folder, topdown=False)]
    above = [parent for parent in folder.parents if parent.is_relative_to(below) and parent != below]
    for path in (*inside, *above):
        with suppress(OSError):  # not empty, or gone already
            path.rmdir()


async def _chunks_of(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


@contextmanager
def on_local_disk(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is written on this machine into Octet's errors; the store is innocent of it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"The disk that holds the folder {folder.name!r} of this machine is full: free some space on it."
            ) from error
        raise StoreUnavailable(
            f"The folder {folder.name!r} of this machine cannot be written ({error.strerror}): let Octet's user own it."
        ) from error


@contextmanager
def _not_lost(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StoreUnavailable(f"The store has lost {path!r}: restore it from a backup.") from error


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the library's errors into ours. It reports a full disk only in its text."""
    try:
        yield
    except (BaseError, OSError) as error:
        text = str(error)
        if "No space left" in text or "os error 28" in text or "StorageFull" in text:
            raise StoreFull("The store has no room left: free some space or delete old versions.") from error
        raise StoreUnavailable(
            "The store does not answer: try again, and look at its health if it stays so."
        ) from error
