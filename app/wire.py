"""Messages of `app.domain.runners` to bytes and back, for both ends of a socket. Sends and receives nothing itself."""

import os
from types import UnionType
from typing import Generic, TypeVar, get_args

import msgspec

from app.domain.errors import OctetError
from app.domain.runners import FromHost, FromRunner, Message, ToHost, ToRunner

Kind = TypeVar("Kind")

LARGEST_BYTES = 2**17
"""Of what is sent over a local socket: as much as it takes whole without a larger buffer than Linux gives it."""

MOST_BYTES = 2**26
"""Of a message that is larger and travels in memory of its own."""

_ENCLOSED = b"\xff"

_KINDS: tuple[type[Message], ...] = get_args(Message)
_NUMBERS = {kind: bytes([number]) for number, kind in enumerate(_KINDS)}
_encode = msgspec.msgpack.Encoder().encode


class MessageInvalid(Exception):
    """The bytes are no message that may come here."""


def encode(message: Message) -> bytes:
    """Write one message: a byte that names its kind, then MessagePack."""
    return _NUMBERS[type(message)] + _encode(message)


def wrap(data: bytes) -> tuple[bytes, list[int]]:
    """Return what to send for an encoded message, and the descriptor of the memory it lies in if it is too large."""
    if len(data) <= LARGEST_BYTES:
        return data, []
    descriptor = os.memfd_create("octet-message", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(data)
    return _ENCLOSED, [descriptor]


def unwrap(data: bytes, descriptors: list[int]) -> bytes:
    """Return the encoded message that was sent so. The descriptor of its memory is closed and taken out.

    Raises:
        MessageInvalid: there is no such memory, or too much of it.
    """
    if data != _ENCLOSED:
        return data
    if not descriptors:
        raise MessageInvalid("The memory that it lies in did not come with it.")
    descriptor = descriptors.pop(0)
    try:
        size = os.fstat(descriptor).st_size
        if size > MOST_BYTES:
            raise MessageInvalid(f"It has {size:,} bytes, over the limit of {MOST_BYTES:,}.")
        return os.pread(descriptor, size, 0)
    except OSError as error:
        raise MessageInvalid(str(error)) from error
    finally:
        os.close(descriptor)


class Decoder(Generic[Kind]):
    """Reads the messages of one direction."""

    def __init__(self, kinds: UnionType) -> None:
        self._decoders = {_NUMBERS[kind][0]: msgspec.msgpack.Decoder(kind).decode for kind in get_args(kinds)}

    def __call__(self, data: bytes | memoryview) -> Kind:
        """Read one message.

        Raises:
            MessageInvalid: it is none, or of another direction.
        """
        try:
            message: Kind = self._decoders[data[0]](data[1:])
        except (LookupError, msgspec.MsgspecError, OctetError) as error:
            raise MessageInvalid(str(error)) from error
        return message


to_runner: Decoder[ToRunner] = Decoder(ToRunner)
from_runner: Decoder[FromRunner] = Decoder(FromRunner)
to_host: Decoder[ToHost] = Decoder(ToHost)
from_host: Decoder[FromHost] = Decoder(FromHost)
