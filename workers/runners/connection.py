"""A runner's end of the socket pair: whole messages in and out, descriptors beside them."""

import array
import os
import socket
from typing import Annotated

from pydantic import Field, TypeAdapter

from app.domain.runners import FromRunner, ToRunner

LARGEST_MESSAGE = 2**20
_TO_RUNNER: TypeAdapter[ToRunner] = TypeAdapter(Annotated[ToRunner, Field(discriminator="kind")])
_FROM_RUNNER: TypeAdapter[FromRunner] = TypeAdapter(Annotated[FromRunner, Field(discriminator="kind")])


class Connection:
    """Blocking. One thread receives; any may send, for a sequenced-packet message is sent whole or not at all."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._buffer = bytearray(LARGEST_MESSAGE)

    def receive(self) -> tuple[ToRunner, int | None] | None:
        """Return the next message and the descriptor that came with it; None once the gateway is gone."""
        size, ancillary, _, _ = self._socket.recvmsg_into(
            [self._buffer], socket.CMSG_SPACE(array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
        )
        if size == 0:
            return None
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        message = _TO_RUNNER.validate_json(memoryview(self._buffer)[:size].tobytes())
        return message, descriptors[0] if descriptors else None

    def send(self, message: FromRunner, *, descriptor: int | None = None) -> None:
        """Send one message; `descriptor` is closed here once it is sent or has failed to be."""
        try:
            descriptors = [] if descriptor is None else [descriptor]
            socket.send_fds(self._socket, [_FROM_RUNNER.dump_json(message)], descriptors)
        finally:
            if descriptor is not None:
                os.close(descriptor)
