"""A job's scratch folder: private, locked while in use, gone afterwards, swept up if its owner died."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = "lock"


@contextmanager
def scratch_folder(root: Path, *, job: str) -> Iterator[Path]:
    """Yield a new folder `<root>/<job>/work` that only this user can enter, and remove it afterwards."""
    owned = root / job
    shutil.rmtree(owned, ignore_errors=True)
    work = owned / "work"
    work.mkdir(parents=True, mode=0o700)
    owned.chmod(0o700)
    with (owned / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield work
        finally:
            shutil.rmtree(owned, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove the folders of jobs whose process is gone: nobody holds their lock."""
    for owned in root.iterdir() if root.exists() else ():
        with suppress(FileNotFoundError, BlockingIOError):
            lock = os.open(owned / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(owned, ignore_errors=True)
            finally:
                os.close(lock)
