"""Opens what a stage says it wrote in its scratch folder, where it may have put links, pipes and devices instead."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from app.domain.errors import StageCrashed
from workers.wording import printable


def output_path(scratch: Path, relative: str) -> Path:
    """Return the path of a file that a stage says it wrote, after its process has ended.

    Raises:
        StageCrashed: it is not a plain file below `scratch`: missing, a link, a device, or outside.
    """
    os.close(_opened(scratch, relative))
    return scratch / relative


def open_output(scratch: Path, relative: str) -> BinaryIO:
    """Open a file that a stage says it wrote, while its process may still replace it by renaming: this one stays whole.

    Raises:
        StageCrashed: it is not a plain file below `scratch`.
    """
    return os.fdopen(_opened(scratch, relative), "rb")


def _opened(scratch: Path, relative: str) -> int:
    parts = Path(relative).parts
    if not parts or Path(relative).is_absolute() or ".." in parts or "\0" in relative:
        raise _bad_output(relative)
    below = os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | below, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = os.open(parts[-1], os.O_RDONLY | os.O_NONBLOCK | below, dir_fd=folder)
    except OSError as error:
        raise _bad_output(relative) from error
    finally:
        os.close(folder)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # none: it was replaced meanwhile
        os.close(file)
        raise _bad_output(relative)
    return file


def _bad_output(relative: str) -> StageCrashed:
    return StageCrashed(f"The stage's output {printable(relative, 100)!r} is not a plain file of its scratch folder.")
