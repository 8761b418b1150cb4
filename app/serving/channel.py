"""One end of a local sequenced-packet socket on the event loop: whole messages, descriptors beside them."""

import array
import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from app.domain.runners import Message
from app.wire import LARGEST_BYTES, Decoder, MessageInvalid, encode, unwrap, wrap

log = logging.getLogger(__name__)

MOST_DESCRIPTORS = 64
_ANCILLARY = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
Kind = TypeVar("Kind")


class Channel(Generic[Kind]):
    """Calls `receive` with every message, in order, and `closed` once, when the other end is gone.

    Descriptors handed to `receive` are the receiver's to close.

    Attributes:
        broken: whether it ended though the other end is there: what came is no message, or one could not be sent.
    """

    def __init__(
        self,
        end: socket.socket,
        *,
        decode: Decoder[Kind],
        receive: Callable[[Kind, list[int]], None],
        closed: Callable[[], None],
    ) -> None:
        self.broken = False
        self._socket = end
        self._decode = decode
        self._receive = receive
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(LARGEST_BYTES)
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._writing = False
        end.settimeout(0)
        self._loop.add_reader(end.fileno(), self._read)

    def send(self, message: Message, *, descriptors: Sequence[int] = ()) -> None:
        """Send, or queue if the other end is behind. `descriptors` are closed here afterwards. If closed: nothing."""
        data, enclosed = wrap(encode(message))
        self._unsent.append((data, (*enclosed, *descriptors)))
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
                data, descriptors = self._unsent[0]
                if descriptors:
                    socket.send_fds(self._socket, [data], list(descriptors))
                else:
                    self._socket.send(data)
                self._forget_first()
        except BlockingIOError:
            self._write_later()
        except ConnectionError:
            self._fail()
        except OSError:
            log.exception("A message cannot be sent: disconnected")
            self._break()

    def _write_later(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._socket.fileno(), self._write)

    def _write(self) -> None:
        self._writing = False
        self._loop.remove_writer(self._socket.fileno())
        self._flush()

    def _forget_first(self) -> None:
        for descriptor in self._unsent.popleft()[1]:
            os.close(descriptor)

    def _break(self) -> None:
        self.broken = True
        self._fail()

    def _fail(self) -> None:
        if self._socket.fileno() >= 0:
            self.close()
            self._loop.call_soon(self._closed)

    def _read(self) -> None:
        while self._socket.fileno() >= 0:
            try:
                size, ancillary, _, _ = self._socket.recvmsg_into([self._buffer], _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it died with messages unread; what it sent before is still to come
            if size == 0:
                self._fail()
                return
            self._take(bytes(memoryview(self._buffer)[:size]), _descriptors(ancillary))

    def _take(self, data: bytes, descriptors: list[int]) -> None:
        try:
            message = self._decode(unwrap(data, descriptors))
        except MessageInvalid:
            log.exception("A message that is none came: disconnected")
            for descriptor in descriptors:
                os.close(descriptor)
            self._break()
            return
        self._receive(message, descriptors)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return descriptors.tolist()
