"""An answer on its way out: it is held until its client has taken it, and a client that takes nothing is cut off."""

import asyncio
from collections.abc import Iterator

from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.http_protocol import Exchange, exchange_of
from app.api.intake import Held

_SHORT_BYTES = 64 * 1024
_PIECE_BYTES = 256 * 1024


class Outgoing(Response):
    """Sends an answer as it is; a long one in pieces, each when the one before has nearly gone.

    Args:
        held: counts the answer's bytes until it has gone; those of a short one until the connection has them.
        seconds: how long a piece may take; then the connection is broken off.

    Raises:
        QueueFull: the process holds too many bytes to keep the answer.
    """

    def __init__(self, answer: Response, *, held: Held, seconds: float) -> None:
        held.keep(len(answer.body))
        self.status_code, self.raw_headers, self.body = answer.status_code, answer.raw_headers, answer.body
        self.background = answer.background
        self._held = held
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            exchange = exchange_of(scope)
            if exchange is None or (len(self.body) <= _SHORT_BYTES and not exchange.write_paused):
                await super().__call__(scope, receive, send)  # which need not wait
            else:
                await self._send_pieces(send, exchange)
        finally:
            self._held.release()

    async def _send_pieces(self, send: Send, exchange: Exchange) -> None:
        """Send, and break off where it waits too long: closed in peace, the connection would wait for the client."""
        loop = asyncio.get_running_loop()
        for message in self._messages():
            timer = loop.call_later(self._seconds, exchange.abort)
            try:
                await send(message)
            finally:
                timer.cancel()

    def _messages(self) -> Iterator[Message]:
        """Yield the head, the pieces, and an end: the server takes a message when what it has is nearly sent."""
        yield {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        body = memoryview(self.body)
        for at in range(0, len(body), _PIECE_BYTES):
            yield {"type": "http.response.body", "body": body[at : at + _PIECE_BYTES], "more_body": True}
        yield {"type": "http.response.body", "body": b"", "more_body": False}
