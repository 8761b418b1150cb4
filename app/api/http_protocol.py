"""HTTP/1.1 as uvicorn reads it with httptools, which bounds no headers: here they have at most 64 KiB."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEADER_BYTES = 64 * 1024

_SENTENCE = f"The request's headers are larger than {MOST_HEADER_BYTES} bytes, the limit: send fewer or shorter ones.\n"
_REFUSAL = (
    "HTTP/1.1 431 Request Header Fields Too Large\r\n"
    "content-type: text/plain; charset=utf-8\r\n"
    f"content-length: {len(_SENTENCE)}\r\n"
    "connection: close\r\n"
    f"\r\n{_SENTENCE}"
).encode()


class HeadersTooLarge(Exception):
    """Ends the parsing of a request."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses headers and trailers over the limit with 431 and closes the connection.

    The parser keeps an unfinished header to itself. So what is counted is the bytes received since the parser last
    showed progress: the end of the headers, a piece of the body, the beginning of a chunk, the end of a message.
    """

    _since_progress = 0
    _too_large = False

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        self._since_progress += len(data)
        super().data_received(data)
        if self._since_progress > MOST_HEADER_BYTES and not self._too_large:
            self._refuse()

    def on_headers_complete(self) -> None:
        """Begin a request, unless its headers, which may have come at once, are too large."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEADER_BYTES:
            self._too_large = True
            raise HeadersTooLarge
        self._since_progress = 0
        super().on_headers_complete()

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
