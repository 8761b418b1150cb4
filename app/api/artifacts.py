"""An artifact as an answer: whole or a range of it, with what a client needs to keep and to resume it."""

from collections.abc import AsyncIterator, Mapping
from pathlib import PurePosixPath

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.api.dependencies import Services
from app.api.errors import problem_of
from app.api.ranges import etag_of, matches, wanted
from app.domain.errors import RangeInvalid
from app.domain.variants import Variant


def file_name(variant: Variant) -> str:
    """Return a file name that explains itself: `resnet20-v1-int8-1a2b3c4d.onnx`."""
    suffix = PurePosixPath(variant.artifact.file).suffix
    return f"{variant.model}-v{variant.version}-{variant.name}-{variant.artifact.sha256[:8]}{suffix}"


async def artifact_answer(request: Request, services: Services, variant: Variant) -> Response:
    """Answer a GET or HEAD for an artifact, conditions and range included."""
    artifact, asked = variant.artifact, request.headers
    etag = etag_of(artifact.sha256)
    if matches(asked.get("if-none-match"), etag):
        return Response(status_code=304, headers=_headers(variant))
    if request.method == "HEAD":
        return _head(variant)
    try:
        part = wanted(asked.get("range"), size=artifact.size_bytes, if_range=asked.get("if-range"), etag=etag)
    except RangeInvalid as error:
        return problem_of(request, error, headers={"Content-Range": f"bytes */{artifact.size_bytes}"})
    if part is None:
        return await whole_artifact(services, variant)
    start, end = part
    shown = {"Content-Range": f"bytes {start}-{end - 1}/{artifact.size_bytes}"}
    return await _stream(services, variant, start=start, end=end, status=206, headers=shown)


async def whole_artifact(services: Services, variant: Variant, *, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with all of an artifact."""
    return await _stream(services, variant, start=0, end=variant.artifact.size_bytes, status=200, headers=headers or {})


async def _stream(
    services: Services, variant: Variant, *, start: int, end: int, status: int, headers: Mapping[str, str]
) -> Response:
    chunks = services.store.stream(services.variants.artifact_path(variant), start=start, end=end)
    first = await anext(chunks, b"")  # a store that does not answer is a 503, not a broken download
    return StreamingResponse(
        _joined(first, chunks),
        status_code=status,
        media_type=variant.artifact.media_type,
        headers={**_headers(variant), "Content-Length": str(end - start), **headers},
    )


def _head(variant: Variant) -> Response:
    length = {"Content-Length": str(variant.artifact.size_bytes)}
    return Response(headers={**_headers(variant), **length}, media_type=variant.artifact.media_type)


def _headers(variant: Variant) -> dict[str, str]:
    return {
        "ETag": etag_of(variant.artifact.sha256),
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
        "Content-Disposition": f'attachment; filename="{file_name(variant)}"',
    }


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
