"""What the kernel says of another process: whether it is still the same one, since when, and its memory."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_STATE, _STARTED = 0, 19  # of the fields after the command's name: the third and the twenty-second of all
_ENDED = ("Z", "X")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that no other can be taken for, although its number may be used again.

    Attributes:
        started_ticks: since the machine's start.
    """

    pid: int
    started_ticks: int

    def seconds(self) -> float:
        """Return for how long it has run."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return now - self.started_ticks / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Return what it holds now: 0 once it has ended, whoever has its number since."""
        return _memory_bytes(self.pid) if find(self.pid) == self else 0


def find(pid: int) -> Process | None:
    """Return the process of that number, unless it has ended."""
    try:
        line = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = line.rpartition(")")[2].split()  # the command's name may hold anything
    return None if fields[_STATE] in _ENDED else Process(pid=pid, started_ticks=int(fields[_STARTED]))


def _memory_bytes(pid: int) -> int:
    """Return the proportional set size, or where the kernel does not let us see that, the resident set's."""
    folder = _PROC / str(pid)
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
    except PermissionError:
        return _resident_bytes(folder)
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _resident_bytes(folder: Path) -> int:
    try:
        return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0
