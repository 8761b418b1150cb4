"""Bind and connect local sockets at paths of any length: the kernel takes 107 bytes, a folder's descriptor makes do."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def bind(end: socket.socket, path: Path) -> None:
    """Bind a local socket to a path.

    Raises:
        OSError: the folder is not there, or the path is taken.
    """
    with _shortened(path) as short:
        end.bind(short)


def connect(end: socket.socket, path: Path) -> None:
    """Connect a local socket to a path.

    Raises:
        OSError: nobody listens there.
    """
    with _shortened(path) as short:
        end.connect(short)


@contextmanager
def _shortened(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
