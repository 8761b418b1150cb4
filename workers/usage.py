"""What a running stage takes of the machine, read from outside: memory, threads, disk. Decides nothing."""

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 512  # st_blocks counts these, whatever the file system
_KIB = 1024
_STARTED = 19  # field 22 of `stat`, of those after the name
# Page tables too, which grow without a page being owned. Not file pages: the kernel can drop those.
_MEMORY_FIELDS = ("RssAnon", "RssShmem", "VmSwap", "VmPTE", "HugetlbPages")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUsage:
    """
    Attributes:
        memory_bytes: memory that only this process's end would give back.
        threads: how many it runs.
    """

    memory_bytes: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsage:
    """
    Attributes:
        size_bytes: on disk, holes not counted.
        entries: files and folders.
        depth: of the folder that is nested deepest; 0 without folders.
    """

    size_bytes: int
    entries: int
    depth: int


def family(pid: int) -> tuple[int, ...]:
    """Return a process and all that its first thread has started, and they; those that ended meanwhile are left out."""
    found = [pid]
    for member in found:
        try:
            found += map(int, Path(f"/proc/{member}/task/{member}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended, or a kernel that does not tell: `workers.training.launch` refuses to work on one
    return tuple(found)


def of_family(pid: int) -> ProcessUsage | None:
    """Add up what a process and those that it has started use now; None if it has ended."""
    members = [used for member in family(pid) if (used := of_process(member)) is not None]
    if not members:
        return None
    return ProcessUsage(
        memory_bytes=sum(each.memory_bytes for each in members), threads=sum(each.threads for each in members)
    )


def of_process(pid: int) -> ProcessUsage | None:
    """Read what a process uses now; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    memory = sum(int(fields[name].split()[0]) * _KIB for name in _MEMORY_FIELDS if name in fields)
    return ProcessUsage(memory_bytes=memory, threads=int(fields.get("Threads", "0")))


def of_folder(folder: Path, *, most_entries: int, most_depth: int) -> DiskUsage:
    """Add up a folder's files, never following a link; stops counting beyond `most_entries` or `most_depth`.

    Raises:
        OSError: a folder in it cannot be looked into.
    """
    size = entries = deepest = 0
    waiting = [(os.fspath(folder), 0)]
    while waiting and entries <= most_entries and deepest <= most_depth:
        path, depth = waiting.pop()
        for entry in _entries(path):
            entries += 1
            size += _on_disk(entry)
            if entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, depth + 1))
                deepest = max(deepest, depth + 1)
            if entries > most_entries:
                break
    return DiskUsage(size_bytes=size, entries=entries, depth=deepest)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from found
    except (FileNotFoundError, NotADirectoryError):
        return  # removed or replaced while we looked


def unlinked_bytes(pid: int) -> int:
    """Add up the files that a process holds open although they have no name any more."""
    size = 0
    for entry in _descriptors(pid):
        try:
            found = entry.stat()
        except OSError:
            continue  # closed while we looked
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
            size += found.st_blocks * _BLOCK_BYTES
    return size


def written_bytes(pid: int) -> int:
    """Return how much a process has sent to disk since it began, also through mappings; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0  # ended, or a kernel that does not count
    return int(dict(line.split(":", 1) for line in text.splitlines()).get("write_bytes", "0"))


def age_seconds(pid: int) -> float:
    """Return how long a process has been running; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    began = int(text.rsplit(")", 1)[1].split()[_STARTED]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)


def file_bytes(path: Path) -> int:
    """Return what a plain file takes on disk, holes not counted; 0 if there is none, or a link."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_blocks * _BLOCK_BYTES if stat.S_ISREG(found.st_mode) else 0


def _descriptors(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _on_disk(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        return 0
