"""Uploads: from the socket into the store as they arrive. What fails half way leaves nothing behind."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from uuid import uuid4

from fastapi import Request

from app.api.bodies import media_type
from app.api.dependencies import Services
from app.api.imports import import_job
from app.api.intake import content_length
from app.api.labels import LABELS, MOST_LABELS_BYTES, read_labels
from app.api.multipart import MultipartReader, Part
from app.api.submission import submit
from app.catalogue.shelf import Manifest, Shelf
from app.catalogue.store import LIMIT, too_large
from app.domain.errors import RequestInvalid, UploadTooLarge
from app.domain.models import Upload
from app.domain.names import check_name
from app.domain.preprocessing import ImagePreprocessing

FORM = "multipart/form-data"
# What the text fields and boundaries of a form may add to its files.
_FORM_BYTES = 2**20 + MOST_LABELS_BYTES
_LONGEST_FILE_NAME = 100
_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form with text fields first and files after them.

    Attributes:
        fields: the text fields read so far; all of them once the first file has come.
    """

    text: Sequence[str]
    files: Sequence[str]
    fields: dict[str, str] = field(default_factory=dict)

    async def read(self, request: Request) -> AsyncIterator[Part]:
        """Yield the files in order, filling `fields` on the way.

        Raises:
            RequestInvalid: a field that is unknown, sent twice or out of order.
        """
        content_type = request.headers.get("content-type", "")
        seen: list[str] = []
        async for part in MultipartReader(request.stream(), content_type=content_type).parts():
            self._check(part, seen)
            seen.append(part.name)
            if part.name in self.text:
                self.fields[part.name] = await (read_labels(part) if part.name == LABELS else part.text())
            else:
                yield part

    def _check(self, part: Part, seen: Sequence[str]) -> None:
        order, name = (*self.text, *self.files), part.name[:80]
        if part.name not in order:
            raise RequestInvalid(f"The form has an unknown field {name!r}: take {', '.join(order)}.")
        if part.name in seen:
            raise RequestInvalid(f"The form has the field {name!r} twice: send it once.")
        files_seen = [other for other in seen if other in self.files]
        if part.name in self.text and files_seen:
            raise RequestInvalid(
                f"The form field {name!r} comes after the file {files_seen[0]!r}: put text fields before files."
            )
        if any(order.index(other) > order.index(part.name) for other in files_seen):
            raise RequestInvalid(f"The form's files must come in the order {', '.join(self.files)}.")


def check_length(request: Request, *, limit: int, files: int = 1) -> None:
    """Refuse a body by what its header announces, before any of it is read.

    Raises:
        UploadTooLarge: it announces more than `files` times `limit` bytes.
    """
    spare = _FORM_BYTES if media_type(request) == FORM else 0
    if content_length(request) > limit * files + spare:
        if files == 1:
            raise UploadTooLarge(too_large(limit))
        raise UploadTooLarge(
            f"The form is larger than {files} times {limit} bytes, the limit of one file: send smaller ones, or raise "
            f"{LIMIT}."
        )


def plain_file_name(filename: str | None) -> str:
    """Return a name that is safe in a folder: the last part of a path, of letters, digits, '.', '_' and '-'."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", _last(filename)).strip("._-")
    stem, dot, suffix = safe.rpartition(".")
    if dot and len(safe) > _LONGEST_FILE_NAME:
        safe = f"{stem[: _LONGEST_FILE_NAME - 17]}.{suffix[:16]}"
    return safe[:_LONGEST_FILE_NAME] or "upload"


def name_for(given: str | None, *, filename: str | None) -> str:
    """Return the name of the model or dataset: the one given, else what the file's name suggests.

    Raises:
        NameInvalid: the name given is not usable.
        RequestInvalid: none was given and the file's suggests none.
    """
    if given is not None:
        return check_name(given)
    slug = re.sub(r"[^a-z0-9._-]+", "-", PurePosixPath(_last(filename)).stem.lower())
    slug = re.sub(r"\.{2,}", ".", slug)[:_LONGEST_NAME].strip("._-")
    if not slug:
        raise RequestInvalid("The upload has no name: send the field 'name', or a file with a name.")
    return check_name(slug)


def _last(path: str | None) -> str:
    return re.split(r"[/\\]", path or "")[-1]


async def receive(
    services: Services,
    shelf: Shelf[Manifest],
    part: Part,
    *,
    name: str | None,
    preprocessing: ImagePreprocessing | None = None,
    labels: tuple[str, ...] | None = None,
    undo: AsyncExitStack,
) -> Upload:
    """Stream one file into the store under the next version of its name; it is not visible yet.

    Args:
        undo: gets what removes it again.
    """
    file = plain_file_name(part.filename)
    called = name_for(name, filename=part.filename)
    version = await shelf.reserve(called)
    undo.push_async_callback(shelf.abandon, called, version)
    limit = services.limits.max_upload_bytes
    written = await shelf.receive(called, version, file=file, chunks=part.chunks, limit=limit)
    return Upload(
        name=called,
        version=version,
        file=file,
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        created_at=datetime.now(UTC),
        job=uuid4().hex,
        preprocessing=preprocessing,
        labels=labels,
    )


async def announce_model(services: Services, upload: Upload, *, undo: AsyncExitStack) -> None:
    """Make a received model visible and have it imported."""
    await services.models.record(upload)
    await submit(services, import_job(upload, subject="model"), undo=undo)
    services.instruments.upload_bytes.labels("model").inc(upload.size_bytes)


async def announce_dataset(services: Services, upload: Upload, *, undo: AsyncExitStack) -> None:
    """Make a received dataset visible and have it imported."""
    await services.datasets.record(upload)
    await submit(services, import_job(upload, subject="dataset"), undo=undo)
    services.instruments.upload_bytes.labels("dataset").inc(upload.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """The one file of an upload, ready to be streamed, and the text fields that came with it."""

    file: Part
    fields: dict[str, str]
    rest: AsyncIterator[Part] | None = None

    async def finish(self) -> None:
        """Check what comes after the file.

        Raises:
            RequestInvalid: another field, or the form is cut off.
        """
        if self.rest is not None:
            async for _ in self.rest:
                continue


async def incoming(request: Request, *, query: Mapping[str, str | None], text: Sequence[str]) -> Incoming:
    """Begin to read an upload. A form brings its fields itself; a raw body has them, and `filename`, in the query.

    Raises:
        RequestInvalid: there is no file, or a form with fields in the query.
    """
    given = {name: value for name, value in query.items() if value is not None}
    if media_type(request) != FORM:
        file = Part(name="file", filename=given.pop("filename", None), chunks=request.stream())
        return Incoming(file=file, fields=given)
    if given:
        raise RequestInvalid(f"A form brings its fields itself: move {', '.join(given)} from the query into it.")
    form = Form(text=text, files=("file",))
    parts = form.read(request)
    first = await anext(parts, None)
    if first is None:
        raise RequestInvalid("The form has no file: send it as the field 'file', behind the text fields.")
    return Incoming(file=first, fields=form.fields, rest=parts)
