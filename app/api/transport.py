"""A connection's transport that sends an answer's head together with what follows it: one system call, one packet."""

import asyncio
from typing import Any

_WORTH_JOINING_BYTES = 64 * 1024


class GatheringTransport(asyncio.Transport):
    """Holds back what begins like an answer's head until something follows, or the event loop turns."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._head = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, or hold back a head."""
        head, self._head = self._head, b""
        if head:
            if len(data) > _WORTH_JOINING_BYTES:
                self._transport.write(head)
            else:
                data = head + bytes(data)
        elif isinstance(data, bytes) and data.startswith(b"HTTP/1.1 "):
            self._head = data
            asyncio.get_running_loop().call_soon(self._flush)
            return
        self._transport.write(data)

    def write_eof(self) -> None:
        """Send what is held back, and nothing more."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Send what is held back, and close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._transport.is_closing()

    def is_reading(self) -> bool:
        """Whether it reads."""
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        """Read nothing for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as asyncio has it
        """Return what the transport knows of its connection."""
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be sent."""
        return len(self._head) + self._transport.get_write_buffer_size()

    def _flush(self) -> None:
        if self._head and not self._transport.is_closing():
            head, self._head = self._head, b""
            self._transport.write(head)
