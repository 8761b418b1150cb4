"""A runner's ends of its sockets, to its host and to gateways: whole messages in and out, descriptors beside them."""

import array
import contextlib
import os
import socket
from collections.abc import Sequence

from app.domain.runners import FromRunner, ToRunner
from app.wire import LARGEST_BYTES, encode, to_runner, unwrap, wrap

_ONE_DESCRIPTOR = socket.CMSG_SPACE(array.array("i").itemsize)


class Connection:
    """Blocking. One thread receives; any may send, for a sequenced-packet message is sent whole or not at all."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=descriptor)
        self._buffer = bytearray(LARGEST_BYTES)

    def fileno(self) -> int:
        """Return the socket's descriptor, for a selector."""
        return self._socket.fileno()

    def receive(self) -> tuple[ToRunner, int | None] | None:
        """Return the next message and the descriptor that came with it; None once the other end is gone."""
        try:
            size, ancillary, _, _ = self._socket.recvmsg_into([self._buffer], _ONE_DESCRIPTOR, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None
        if size == 0:
            return None
        descriptors = _descriptors(ancillary)
        message = to_runner(unwrap(bytes(memoryview(self._buffer)[:size]), descriptors))
        return message, descriptors[0] if descriptors else None

    def send(self, message: FromRunner, *, descriptor: int | None = None) -> bool:
        """Send one message; `descriptor` is closed here afterwards. Return False if the other end is gone."""
        data, descriptors = wrap(encode(message))
        if descriptor is not None:
            descriptors.append(descriptor)
        try:
            socket.send_fds(self._socket, [data], descriptors)
        except OSError:  # closed, or it has not read for as long as the socket's time-out
            return False
        finally:
            for each in descriptors:
                os.close(each)
        return True

    def hang_up(self) -> None:
        """Let both ends read that this is the end."""
        with contextlib.suppress(OSError):  # it may be closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return descriptors.tolist()
