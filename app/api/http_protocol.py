"""HTTP/1.1 as uvicorn reads it with httptools, with what that lacks: bounded headers, long bodies that the kernel
writes where they are wanted, and a word when the client is gone.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

MOST_HEADER_BYTES = 64 * 1024
HTTP_PROTOCOL = f"{__name__}:BoundedHttpProtocol"
"""What uvicorn is told to speak."""

EXCHANGE = "octet.exchange"
"""Where a request's scope has its `Exchange`."""

_SENTENCE = f"The request's headers are larger than {MOST_HEADER_BYTES} bytes, the limit: send fewer or shorter ones.\n"
_REFUSAL = (
    "HTTP/1.1 431 Request Header Fields Too Large\r\n"
    "content-type: text/plain; charset=utf-8\r\n"
    f"content-length: {len(_SENTENCE)}\r\n"
    "connection: close\r\n"
    f"\r\n{_SENTENCE}"
).encode()


_READ_BYTES = 16 * 1024
_scratch = memoryview(bytearray(_READ_BYTES))  # of all connections: what is read there is copied before the next read


class HeadersTooLarge(Exception):
    """Ends the parsing of a request."""


class Exchange:
    """What a request's handler may ask of its connection beyond ASGI.

    Attributes:
        on_lost: called when the connection is gone before the answer is complete.
        came_bytes: of the body, since `read_into`.
        left_bytes: of the body that are still to come past the parser; 0 unless `read_into` was called.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.on_lost: Callable[[], None] | None = None
        self.came_bytes = 0
        self.left_bytes = 0
        self._cycle = cycle
        self._memory: memoryview | None = None

    def read_into(self, memory: memoryview) -> None:
        """Take the body into `memory`, which is as long as it. ASGI's `receive` then tells of its end alone."""
        came, self._cycle.body = self._cycle.body, bytearray()
        memory[: len(came)] = came
        self._memory, self.came_bytes, self.left_bytes = memory, len(came), len(memory) - len(came)

    def forget_memory(self) -> None:
        """Write there no more: what is still to come of the body is dropped."""
        self._memory = None

    def place(self) -> memoryview:
        """Return where the next piece of the body goes."""
        if self._memory is None:
            return _scratch[: self.left_bytes]
        return self._memory[self.came_bytes :]

    def take(self, size_bytes: int) -> None:
        """Note that a piece has come."""
        self.came_bytes += size_bytes
        self.left_bytes -= size_bytes


def exchange_of(scope: Scope) -> Exchange | None:
    """Return a request's exchange; None under another server."""
    found = scope.get(EXCHANGE)
    return found if isinstance(found, Exchange) else None


class _Parsing(HttpToolsProtocol):
    """Refuses headers and trailers over the limit with 431 and closes the connection.

    The parser keeps an unfinished header to itself. So what is counted is the bytes received since the parser last
    showed progress: the end of the headers, a piece of the body, the beginning of a chunk, the end of a message.

    Before a long body it stops reading until the request's handler has said where that goes. From there to the body's
    end, which its announced length tells, the parser sees nothing; a new one reads the next request.
    """

    _since_progress = 0
    _too_large = False
    _exchange: Exchange | None = None

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
            self.parser = httptools.HttpRequestParser(self)
            self.on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        self._since_progress += len(data)
        super().data_received(data)
        if self._since_progress > MOST_HEADER_BYTES and not self._too_large:
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the client is gone."""
        super().connection_lost(exc)
        exchange = self._exchange
        if exchange is not None and exchange.on_lost is not None and not self.cycle.response_complete:
            exchange.on_lost()

    def on_headers_complete(self) -> None:
        """Begin a request, unless its headers, which may have come at once, are too large."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEADER_BYTES:
            self._too_large = True
            raise HeadersTooLarge
        self._since_progress = 0
        super().on_headers_complete()
        self._exchange = Exchange(self.cycle)
        if _announced(self.headers) > _READ_BYTES:
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
        """End a request."""
        self._since_progress = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not take."""
        if self._too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        self._too_large = True
        self.transport.write(_REFUSAL)
        self.transport.close()


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
        return _scratch if place is None else place

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the kernel wrote."""
        if self._past_parser:
            self._parsing.took(nbytes)
        else:
            self._parsing.data_received(bytes(_scratch[:nbytes]))


def _announced(headers: list[tuple[bytes, bytes]]) -> int:
    """Return the body's length, 0 if it is not announced."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
