"""Scratch folders: one for each attempt at a job, private, locked while in use, gone afterwards.

What a killed process leaves behind is swept up by the next worker that starts: nobody holds its lock.
"""

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.trees import remove_tree

log = logging.getLogger(__name__)

_LOCK = "lock"


@contextmanager
def scratch_folder(root: Path, *, job: str) -> Iterator[Path]:
    """Yield a new folder that only this user can enter, and remove it afterwards."""
    root.mkdir(parents=True, exist_ok=True)
    owned, lock = _own(root, job)
    try:
        work = owned / "work"
        work.mkdir(mode=0o700)
        yield work
    finally:
        _discard(owned)
        os.close(lock)


def sweep(root: Path) -> None:
    """Remove the folders whose process is gone."""
    for owned in root.iterdir() if root.exists() else ():
        try:
            lock = _locked(owned, wait=False)
        except OSError:
            log.exception("The scratch folder %s cannot be looked into: remove it by hand.", owned.name)
            continue
        if lock is not None:
            _discard(owned)
            os.close(lock)


def _discard(owned: Path) -> None:
    """Remove a folder; one that resists is left to the next sweep, and said so: it must not stop a worker."""
    try:
        remove_tree(owned)
    except OSError:
        log.exception("The scratch folder %s cannot be removed: remove it by hand.", owned.name)


def _own(root: Path, job: str) -> tuple[Path, int]:
    """Make a folder and hold its lock. A sweeper may be faster between the two: then make another."""
    while True:
        owned = Path(tempfile.mkdtemp(prefix=f"{job}-", dir=root))
        lock = _locked(owned, wait=True)
        if lock is not None:
            return owned, lock


def _locked(owned: Path, *, wait: bool) -> int | None:
    """Hold a folder's lock; None if another process does, or the folder is gone by now."""
    try:
        lock = os.open(owned / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(lock), (owned / _LOCK).stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None
