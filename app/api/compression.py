"""gzip and deflate: bodies are unpacked piece by piece within their limit, answers are packed for who asks."""

import asyncio
import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastapi import Request, Response

from app.domain.errors import RequestInvalid, UnsupportedFormat, UploadTooLarge

CODINGS = ("gzip", "deflate")

_PIECE_BYTES = 256 * 1024
_WORTH_BYTES = 1024
_LARGE_BYTES = 64 * 1024
_JSON = "application/json"
_FASTEST = 1
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # RFC 9110: deflate means the zlib format


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What an unpacked body may take.

    Attributes:
        most_bytes: how long it may be.
        advice: what to do about one that is longer.
        count: is told how many bytes came, as they come, and may refuse them.
    """

    most_bytes: int
    advice: str
    count: Callable[[int], None]


def content_coding(request: Request) -> str | None:
    """Return how the body is packed; None if it is not.

    Raises:
        UnsupportedFormat: in another way than gzip or deflate, or in several.
    """
    named = request.headers.get("content-encoding", "").strip().lower()
    coding = {"x-gzip": "gzip", "": "identity"}.get(named, named)
    if coding != "identity" and coding not in CODINGS:
        raise UnsupportedFormat(
            f"Content-Encoding {named[:60]!r} cannot be unpacked: send the body in one of {', '.join(CODINGS)}, once, "
            "or as it is."
        )
    return None if coding == "identity" else coding


async def unpacked(packed: bytes | memoryview, *, coding: str, room: Room) -> bytes:
    """Unpack a body. Whatever it would unpack to, no more than the limit and a piece is ever held.

    Raises:
        UploadTooLarge: it unpacks to more than there is room for.
        RequestInvalid: it is not packed as it says, is cut off, or has something behind its end.
    """
    pieces, size = bytearray(), 0
    steps = _steps(packed, coding=coding)
    while (piece := await _next(steps, aside=len(packed) > _PIECE_BYTES or size > 0)) is not None:
        size += len(piece)
        if size > room.most_bytes:
            raise UploadTooLarge(f"The body unpacks to more than {room.most_bytes} bytes, the limit: {room.advice}.")
        room.count(len(piece))
        pieces += piece
    return bytes(pieces)


async def _next(steps: Iterator[bytes], *, aside: bool) -> bytes | None:
    """Take one step, in a thread if there may be many: zlib lets other requests go on meanwhile."""
    return await asyncio.to_thread(next, steps, None) if aside else next(steps, None)


def _steps(packed: bytes | memoryview, *, coding: str) -> Iterator[bytes]:
    unpacking, rest = zlib.decompressobj(_WINDOW[coding]), memoryview(packed)
    while not unpacking.eof:
        taken, rest = rest[:_PIECE_BYTES], rest[_PIECE_BYTES:]
        if not taken and not unpacking.unconsumed_tail:
            raise RequestInvalid(f"The body ends before its {coding} does: send all of it.")
        yield from _unpack(unpacking, taken, coding=coding)
    if unpacking.unused_data or rest:
        raise RequestInvalid(f"The body has something behind the end of its {coding}: send one packed body alone.")


def _unpack(unpacking: "zlib._Decompress", taken: memoryview, *, coding: str) -> Iterator[bytes]:
    data: bytes | memoryview = taken
    while data and not unpacking.eof:
        try:
            yield unpacking.decompress(data, _PIECE_BYTES)
        except zlib.error as error:
            raise RequestInvalid(f"The body is no {coding}, as its Content-Encoding says: send it so.") from error
        data = unpacking.unconsumed_tail


async def packed_for(request: Request, answer: Response) -> Response:
    """Pack an answer in JSON that is long enough, if the client asks for it. Numbers as bytes hardly get shorter."""
    if len(answer.body) <= _WORTH_BYTES or answer.media_type != _JSON:
        return answer
    body = bytes(answer.body)
    answer.headers["Vary"] = "Accept-Encoding"
    coding = _asked_for(request.headers.get("accept-encoding", ""))
    if coding is None:
        return answer
    packed = await asyncio.to_thread(_packed, body, coding) if len(body) > _LARGE_BYTES else _packed(body, coding)
    if len(packed) < len(body):
        answer.body = packed
        answer.headers["Content-Encoding"] = coding
        answer.headers["Content-Length"] = str(len(packed))
    return answer


def _packed(body: bytes, coding: str) -> bytes:
    return gzip.compress(body, _FASTEST, mtime=0) if coding == "gzip" else zlib.compress(body, _FASTEST)


def _asked_for(accepted: str) -> str | None:
    """Return the coding to answer in: the first that the client takes and Octet knows."""
    for part in accepted.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in CODINGS and weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            return coding.strip()
    return None
