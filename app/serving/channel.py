"""A gateway's end of the socket pair to one runner, on the event loop: whole messages, descriptors beside them."""

import array
import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from app.domain.runners import FromRunner, ToRunner

log = logging.getLogger(__name__)

LARGEST_MESSAGE = 2**20
_TO_RUNNER: TypeAdapter[ToRunner] = TypeAdapter(Annotated[ToRunner, Field(discriminator="kind")])
_FROM_RUNNER: TypeAdapter[FromRunner] = TypeAdapter(Annotated[FromRunner, Field(discriminator="kind")])


class Channel:
    """Calls `receive` with every message, in order, and `closed` once, when the other end is gone.

    A descriptor handed to `receive` is the receiver's to close.
    """

    def __init__(
        self,
        end: socket.socket,
        *,
        receive: Callable[[FromRunner, int | None], None],
        closed: Callable[[], None],
    ) -> None:
        self._socket = end
        self._receive = receive
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(LARGEST_MESSAGE)
        self._unsent: deque[tuple[bytes, int | None]] = deque()
        self._writing = False
        end.settimeout(0)
        self._loop.add_reader(end.fileno(), self._read)

    def send(self, message: ToRunner, *, descriptor: int | None = None) -> None:
        """Send, or queue if the runner is behind; `descriptor` is closed here afterwards. To a closed end: nothing."""
        self._unsent.append((_TO_RUNNER.dump_json(message), descriptor))
        if self._socket.fileno() < 0:
            self._forget_first()
        elif len(self._unsent) == 1:
            self._flush()

    def close(self) -> None:
        """Stop listening and close the socket; `closed` is not called for it."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        while self._unsent:
            self._forget_first()

    def _flush(self) -> None:
        try:
            while self._unsent:
                data, descriptor = self._unsent[0]
                socket.send_fds(self._socket, [data], [] if descriptor is None else [descriptor])
                self._forget_first()
        except BlockingIOError:
            self._write_later()
        except OSError:
            self._fail()  # a message too large to send is as much the end as a runner that is gone

    def _write_later(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._socket.fileno(), self._write)

    def _write(self) -> None:
        self._writing = False
        self._loop.remove_writer(self._socket.fileno())
        self._flush()

    def _forget_first(self) -> None:
        _, descriptor = self._unsent.popleft()
        if descriptor is not None:
            os.close(descriptor)

    def _fail(self) -> None:
        if self._socket.fileno() >= 0:
            self.close()
            self._loop.call_soon(self._closed)

    def _read(self) -> None:
        while self._socket.fileno() >= 0:
            try:
                size, ancillary, _, _ = self._socket.recvmsg_into(
                    [self._buffer], socket.CMSG_SPACE(array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # the runner died with messages unread; what it sent before is still to come
            if size == 0:
                self._fail()
                return
            self._take(bytes(self._buffer[:size]), _descriptor(ancillary))

    def _take(self, data: bytes, descriptor: int | None) -> None:
        try:
            message = _FROM_RUNNER.validate_json(data)
        except ValidationError:
            log.exception("A runner sent a message that is none")
            self._fail()
            return
        self._receive(message, descriptor)


def _descriptor(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return descriptors[0] if descriptors else None
