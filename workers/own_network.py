"""A network that has nothing but a loopback, for processes that must talk to each other and to nobody else."""

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

UNAVAILABLE = "own network"
"""How the protection is named where it is missing."""

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_INTERFACE = "16sH14s"


def available() -> bool:
    """Tell whether this process could `enter` one: a child tries. To be asked before there are threads."""
    child = os.fork()
    if child == 0:
        os._exit(_try())
    return os.waitpid(child, 0)[1] == 0


def enter() -> None:
    """Move this process there, with all it starts. To be called before there are threads.

    Raises:
        OSError: the kernel, or what guards it, refused a step; this process may be half way then.
    """
    user, group = os.getuid(), os.getgid()
    try:
        _unshare(_CLONE_NEWNET)
    except OSError:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack(_INTERFACE, b"lo", _IFF_UP, b""))


def _try() -> int:
    try:
        enter()
    except OSError:
        return 1
    return 0


def _unshare(what: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(what) != 0:
        raise OSError(ctypes.get_errno(), f"unshare failed: {os.strerror(ctypes.get_errno())}")
