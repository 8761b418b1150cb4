"""Landlock through its three system calls: which files this process may still reach. Knows no policy of Octet's."""

import ctypes
import os
import struct
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

# The numbers are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_NET_BIND_TCP, _NET_CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


class Access(IntFlag):
    """File rights, as linux/landlock.h numbers them."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_FILE_RIGHTS = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
# What each version of the kernel's interface can refuse.
_SINCE: dict[Access, int] = {Access.REFER: 2, Access.TRUNCATE: 3, Access.IOCTL_DEV: 5}


def abi() -> int:
    """Return the version of Landlock that the kernel offers, 0 if it offers none."""
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION))
    return max(int(version), 0)


def restrict(rules: Iterable[tuple[Path, Access]], *, tcp: bool = False) -> None:
    """Refuse this thread, and all it starts, every file right but these, TCP, and signals to other processes.

    A rule covers a file, or a folder and all below it; a path that does not exist is left out. With `tcp`, all of it
    is left alone: a rule would have to name every port.

    Raises:
        OSError: the kernel did not take the rules.
    """
    version = abi()
    handled = _known(version)
    ruleset = _create(handled, version, tcp=tcp)
    try:
        for path, access in rules:
            _add(ruleset, path, access & handled)
        _check(_libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _known(version: int) -> Access:
    rights = Access(0)
    for right in Access:
        if version >= _SINCE.get(right, 1):
            rights |= right
    return rights


def _create(handled: Access, version: int, *, tcp: bool) -> int:
    net = _NET_BIND_TCP | _NET_CONNECT_TCP if version >= 4 and not tcp else 0  # noqa: PLR2004
    scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= 6 else 0  # noqa: PLR2004
    # An older kernel takes a longer record whose tail is zero.
    attributes = struct.pack("=QQQ", handled, net, scoped)
    made = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    return _check(made, "landlock_create_ruleset")


def _add(ruleset: int, path: Path, access: Access) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights = access if path.is_dir() else access & _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, opened)
        done = _libc.syscall(
            _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), rule, ctypes.c_uint32(0)
        )
        _check(done, f"landlock_add_rule for {path}")
    finally:
        os.close(opened)


def _check(result: int, call: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{call} failed: {os.strerror(ctypes.get_errno())}")
    return int(result)
