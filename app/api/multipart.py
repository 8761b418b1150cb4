"""`multipart/form-data` as a stream of parts: memory stays flat however large a file is, and nothing touches a disk."""

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.domain.errors import RequestInvalid

MOST_PARTS = 32
MOST_TEXT_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a form, to be read before the next one is asked for.

    Attributes:
        filename: as the client wrote it; None for a text field.
        chunks: the content as it arrives.
    """

    name: str
    filename: str | None
    chunks: AsyncIterator[bytes]

    async def text(self, *, most_bytes: int = MOST_TEXT_BYTES) -> str:
        """Read a text field.

        Raises:
            RequestInvalid: it is longer than `most_bytes`, or not UTF-8.
        """
        content = bytearray()
        async for chunk in self.chunks:
            content += chunk
            if len(content) > most_bytes:
                raise RequestInvalid(
                    f"Form field {self.name[:80]!r} is longer than {most_bytes} bytes, the limit: shorten it."
                )
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise RequestInvalid(f"Form field {self.name[:80]!r} is not UTF-8 text: encode it so.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begin:
    name: str
    filename: str | None


class _End:
    """A part has ended."""


@dataclass(slots=True)
class _Headers:
    """The headers of the part being parsed; mutable, because they arrive in pieces."""

    name: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    disposition: bytes = b""

    def keep(self) -> None:
        if bytes(self.name).lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.name.clear()
        self.value.clear()

    def begin(self) -> _Begin:
        _, options = parse_options_header(self.disposition)
        if b"name" not in options:
            raise RequestInvalid("A part of the form has no name: send Content-Disposition: form-data; name=….")
        filename = options.get(b"filename")
        return _Begin(
            name=options[b"name"].decode(errors="replace"),
            filename=filename.decode(errors="replace") if filename is not None else None,
        )


class MultipartReader:
    """Parses one body.

    Args:
        chunks: the body, cut anywhere.
        content_type: the request's header; it holds the boundary.

    Raises:
        RequestInvalid: there is no boundary. Reading raises it when the body is no such form or ends too early.
    """

    def __init__(self, chunks: AsyncIterator[bytes], *, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        if not options.get(b"boundary"):
            raise RequestInvalid("The form's Content-Type has no boundary: let your HTTP client write that header.")
        self._chunks = chunks
        self._events: deque[_Begin | bytes | _End] = deque()
        self._headers = _Headers()
        self._ended = False
        with_boundary = options[b"boundary"]
        try:
            self._parser = MultipartParser(
                with_boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._headers.name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._headers.value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": lambda: self._events.append(self._headers.begin()),
                    "on_part_data": lambda data, start, end: self._events.append(data[start:end]),
                    "on_part_end": lambda: self._events.append(_End()),
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _unreadable(error) from error

    async def parts(self) -> AsyncIterator[Part]:
        """Yield the parts in order; what was not read of one is skipped."""
        count = 0
        while (event := await self._next()) is not None:
            if not isinstance(event, _Begin):
                continue
            count += 1
            if count > MOST_PARTS:
                raise RequestInvalid(f"The form has more than {MOST_PARTS} parts, the limit: send each field once.")
            yield Part(name=event.name, filename=event.filename, chunks=self._content())

    async def _content(self) -> AsyncIterator[bytes]:
        while (event := await self._next()) is not None:
            if not isinstance(event, bytes):
                return
            yield event

    async def _next(self) -> _Begin | bytes | _End | None:
        while not self._events:
            if self._ended:
                return None
            chunk = await anext(self._chunks, None)
            if chunk is None:
                raise RequestInvalid("The form ends before its last boundary: send it whole.")
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _unreadable(error) from error
        return self._events.popleft()

    def _on_part_begin(self) -> None:
        self._headers = _Headers()

    def _on_header_end(self) -> None:
        self._headers.keep()

    def _on_end(self) -> None:
        self._ended = True


def _unreadable(error: FormParserError) -> RequestInvalid:
    return RequestInvalid(f"The body is not a multipart form ({str(error)[:120]}): let your HTTP client write it.")
