"""HTTP/1.1 as uvicorn reads it with httptools, with what that lacks: bounded headers, in size and in time, long bodies
that the kernel writes where they are wanted, refusals that overtake no answer, and a word when the client is gone.
"""

import asyncio
import secrets
import threading
from asyncio import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.api.errors import problem
from app.api.transport import GatheringTransport
from app.domain.errors import OctetError

MOST_HEADER_BYTES = 64 * 1024
MOST_HEADER_SECONDS = 30.0
HTTP_PROTOCOL = f"{__name__}:BoundedHttpProtocol"
"""What uvicorn is told to speak."""

EXCHANGE = "octet.exchange"
"""Where a request's scope has its `Exchange`."""

_LINGER_SECONDS, _LINGER_BYTES = 1.0, 4 * 2**20
_READ_BYTES = 64 * 1024
_HEAD_BYTES = 16 * 1024

_FRAMING = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """The answer to what no route ever sees."""

    status: HTTPStatus
    detail: str

    def written(self) -> bytes:
        """Write it as an answer that ends the connection."""
        code = self.status.phrase.lower().replace(" ", "_")
        answer = problem(self.status, code=code, detail=self.detail, request_id=secrets.token_hex(16))
        lines = [f"HTTP/1.1 {self.status} {self.status.phrase}".encode()]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        return b"\r\n".join([*lines, b"connection: close", b"", bytes(answer.body)])


_TOO_LARGE = _Refusal(
    status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    detail=f"The request's headers are larger than {MOST_HEADER_BYTES} bytes, the limit: send fewer or shorter ones.",
)
_NO_HTTP = _Refusal(
    status=HTTPStatus.BAD_REQUEST,
    detail="What was sent is no HTTP/1.1: send requests as RFC 9112 describes them.",
)
_TOO_LATE = _Refusal(
    status=HTTPStatus.REQUEST_TIMEOUT,
    detail=f"The request's headers did not come within {MOST_HEADER_SECONDS:g} s, the limit: send them at once.",
)


class _Scratch(threading.local):
    """Memory that all connections of one event loop read into: what is there is copied before the next read.

    Attributes:
        head: for what begins a request: what comes of a long body here must be copied again.
    """

    def __init__(self) -> None:
        self.whole = memoryview(bytearray(_READ_BYTES))
        self.head = self.whole[:_HEAD_BYTES]


_scratch = _Scratch()


class HeadersTooLarge(Exception):
    """Ends the parsing of a request."""


class Exchange:
    """What a request's handler may ask of its connection beyond ASGI.

    Attributes:
        on_lost: called when the connection is gone before the answer is complete.
        came_bytes: of the body, since `read_into`.
        left_bytes: of the body that are still to come past the parser; 0 unless `read_into` was called.
        refused: what `count` raised; then nothing more is written to the memory.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.on_lost: Callable[[], None] | None = None
        self.came_bytes = 0
        self.left_bytes = 0
        self.refused: OctetError | None = None
        self._cycle = cycle
        self._memory: memoryview | None = None
        self._count: Callable[[int], None] | None = None

    @property
    def write_paused(self) -> bool:
        """Whether the client has not taken what was sent before."""
        return self._cycle.flow.write_paused

    def abort(self) -> None:
        """Break the connection off."""
        self._cycle.transport.abort()

    @property
    def whole(self) -> bool:
        """Whether all of the request has come, read or not."""
        return not self._cycle.more_body

    def read_into(self, memory: memoryview, *, count: Callable[[int], None] | None = None) -> None:
        """Take the body into `memory`, which is as long as it. ASGI's `receive` then tells of its end alone.

        Args:
            count: is told how many bytes came, as they come, and may refuse them.
        """
        came, self._cycle.body = self._cycle.body, bytearray()
        memory[: len(came)] = came
        self._memory, self._count, self.left_bytes = memory, count, len(memory)
        self.take(len(came))

    def forget_memory(self) -> None:
        """Write there no more: what is still to come of the body is dropped."""
        self._memory = self._count = None

    def place(self) -> memoryview:
        """Return where the next piece of the body goes."""
        if self._memory is None:
            return _scratch.whole[: self.left_bytes]
        return self._memory[self.came_bytes :]

    def take(self, size_bytes: int) -> None:
        """Note that a piece has come."""
        self.came_bytes += size_bytes
        self.left_bytes -= size_bytes
        if self._count is None:
            return
        try:
            self._count(size_bytes)
        except OctetError as error:
            self.refused = error
            self.forget_memory()
            self._cycle.message_event.set()


def exchange_of(scope: Scope) -> Exchange | None:
    """Return a request's exchange; None under another server."""
    found = scope.get(EXCHANGE)
    return found if isinstance(found, Exchange) else None


class _Parsing(HttpToolsProtocol):
    """Refuses headers and trailers over the limit with 431, what is no HTTP with 400, and closes the connection.

    The parser keeps an unfinished header to itself. So what is counted is the bytes received since the parser last
    showed progress: the end of the headers, a piece of the body, the beginning of a chunk, the end of a message.

    Before a long body it stops reading until the request's handler has said where that goes. From there to the body's
    end, which its announced length tells, the parser sees nothing; a new one reads the next request.
    """

    _since_progress = 0
    _dropped_bytes = 0
    _too_large = False
    _exchange: Exchange | None = None
    _answering: RequestResponseCycle | None = None
    _refusal: _Refusal | None = None
    _late: TimerHandle | None = None

    @property
    def amid_body(self) -> bool:
        """Whether the parser waits for the rest of a body."""
        return self.cycle is not None and self.cycle.more_body

    def place(self) -> memoryview | None:
        """Return where the next bytes go that the parser shall not see; None if it shall."""
        return self._exchange.place() if self._exchange is not None and self._exchange.left_bytes else None

    def took(self, size_bytes: int) -> None:
        """Note that so many bytes have come past the parser."""
        exchange = self._exchange
        if exchange is None:
            return
        exchange.take(size_bytes)
        if not exchange.left_bytes:
            self._parse_with(self)
            self.on_message_complete()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(GatheringTransport(transport))
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Parse what has come, unless the connection is only to be closed."""
        if self._refusal is not None:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > _LINGER_BYTES:
                self.transport.close()
            return
        self._since_progress += len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(_TOO_LARGE if self._too_large else _NO_HTTP)
            return
        if self._since_progress > MOST_HEADER_BYTES:
            self._refuse(_TOO_LARGE)
        elif self._late is None and not self._busy:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the client is gone, and tell whatever is at work for it, which more requests may stand behind."""
        self._headers_came()
        super().connection_lost(exc)
        self._tell_lost()

    def on_headers_complete(self) -> None:
        """Begin a request, unless its headers, which may have come at once, are too large."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEADER_BYTES:
            self._too_large = True
            raise HeadersTooLarge
        self._since_progress = 0
        self._headers_came()
        super().on_headers_complete()
        self._exchange = Exchange(self.cycle)
        if _announced(self.headers) > _HEAD_BYTES:
            self.flow.pause_reading()  # `receive` resumes it
        self.scope[EXCHANGE] = self._exchange  # type: ignore[literal-required]

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._since_progress = 0
        super().on_body(body)

    def on_chunk_header(self) -> None:
        """Note that a chunk begins."""
        self._since_progress = 0

    def on_message_complete(self) -> None:
        """End a request; one that asks for an upgrade ends where the next parser says so."""
        self._since_progress = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on to the next request, or say what was wrong behind the last one."""
        super().on_response_complete()
        if self._refusal is not None and not self._busy:
            self._close_with(self._refusal)

    @property
    def _busy(self) -> bool:
        """Whether a request is being answered."""
        return self._answering is not None and not self._answering.response_complete

    def _tell_lost(self) -> None:
        """Tell whatever is at work that nobody will read its answer."""
        cycle = self._answering
        if cycle is None or cycle.response_complete:
            return
        cycle.disconnected = True
        cycle.message_event.set()
        exchange = exchange_of(cycle.scope)  # type: ignore[arg-type]
        if exchange is not None and exchange.on_lost is not None:
            exchange.on_lost()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _feed(self, data: bytes) -> None:
        """Parse, and ignore every wish for an upgrade (RFC 9110, section 7.8).

        At such a wish the parser stops behind the headers. Another one reads on, told only how the body ends.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                told = [name + b": " + value for name, value in self.headers if name in _FRAMING]
                self._parse_with(_Continuation(self))
                data = b"\r\n".join([b"POST / HTTP/1.1", *told, b"", b""]) + data[upgrade.args[0] :]
            else:
                return

    def _parse_with(self, callbacks: object) -> None:
        self.parser = httptools.HttpRequestParser(callbacks)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's first one

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer what cannot be read once all requests before it are answered, and close the connection."""
        self._refusal = refusal
        if self.cycle is not None and self.cycle.more_body:  # it is the rest of this one that cannot be read
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()
            elif self._busy:
                self._tell_lost()
                self._close_with(None if self.cycle.response_started else refusal)
                return
        if not self._busy:
            self._close_with(refusal)

    def _close_with(self, refusal: _Refusal | None) -> None:
        """Close the connection. One that is told why may still send: closed at once, it would lose the answer."""
        if refusal is None or self.transport.is_closing():
            self.transport.close()
            return
        self.transport.write(refusal.written())
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _expect_headers(self) -> None:
        self._late = self.loop.call_later(MOST_HEADER_SECONDS, self._headers_late)

    def _headers_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _headers_late(self) -> None:
        self._late = None
        if not self._busy:
            self._refusal = _TOO_LATE
            self._close_with(_TOO_LATE if self._since_progress else None)


class _Continuation:
    """Callbacks of a parser that reads on behind headers that were read already: its first headers say nothing new."""

    def __init__(self, parsing: _Parsing) -> None:
        self._parsing = parsing
        self._again = True
        self.on_body = parsing.on_body
        self.on_chunk_header = parsing.on_chunk_header
        self.on_message_complete = parsing.on_message_complete

    def on_message_begin(self) -> None:
        if not self._again:
            self._parsing.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._again:
            self._parsing.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._again:
            self._parsing.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._again:
            self._parsing.on_headers_complete()
        self._again = False


class BoundedHttpProtocol(asyncio.BufferedProtocol):
    """What the event loop talks to: it lets the kernel write into memory that is already there.

    uvicorn's own protocol is not of that kind, and event loops take no class that is of both.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._parsing = _Parsing(config, server_state, app_state, _loop)
        self._past_parser = False
        self.connection_made = self._parsing.connection_made  # type: ignore[method-assign, assignment]
        self.connection_lost = self._parsing.connection_lost  # type: ignore[method-assign]
        self.eof_received = self._parsing.eof_received  # type: ignore[method-assign]
        self.pause_writing = self._parsing.pause_writing  # type: ignore[method-assign]
        self.resume_writing = self._parsing.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the kernel shall write what comes next."""
        del sizehint
        place = self._parsing.place()
        self._past_parser = place is not None
        if place is not None:
            return place
        return _scratch.whole if self._parsing.amid_body else _scratch.head

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the kernel wrote."""
        if self._past_parser:
            self._parsing.took(nbytes)
        else:
            self._parsing.data_received(bytes(_scratch.whole[:nbytes]))


def _announced(headers: list[tuple[bytes, bytes]]) -> int:
    """Return the body's length, 0 if it is not announced."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
