"""Ties a process to the one that started it. Standard library alone: it runs before anything heavy is imported."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Be killed when the process that started this one dies, even by SIGKILL.

    Args:
        parent: its process id; if it is gone already, so is this process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed: this process would outlive the one that started it")
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
