"""What one stage may take of the machine, and the sentence for each limit it breaks."""

from dataclasses import dataclass
from pathlib import Path

from app.domain.errors import JobFailure, OutOfDisk, OutOfMemory, OutOfTime, StageCrashed
from workers import usage

MAX_THREADS = 1_000
MAX_ENTRIES = 100_000
MAX_DEPTH = 64
# Written and removed again counts as well, since a file without a name can be kept by a mapping alone.
_REWRITES = 4
STATES = 2
"""How many states a stage that trains may write beyond one in each of its intervals: at its end, and half of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Several machines that train together.

    Attributes:
        rendezvous: `host:port` where they meet; the host is the worker's own machine.
        number: of them, the worker's included.
    """

    rendezvous: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one stage may take.

    Attributes:
        memory_bytes: of all its processes on this machine together.
        machines: others that it may train on, too; None for this one alone.
        state: where a stage that trains writes its state anew and anew, a file of its scratch folder; None for others.
        state_seconds: how often it may.
    """

    memory_bytes: int
    scratch_bytes: int
    seconds: float
    machines: Machines | None = None
    state: str | None = None
    state_seconds: float = 1.0

    def broken_by(self, pid: int, scratch: Path) -> JobFailure | None:
        """Look at a running stage, all its processes together; None while it keeps to the limits."""
        used = usage.of_family(pid)
        if used is None:
            return None
        members = usage.family(pid)
        if used.memory_bytes > self.memory_bytes:
            return self.out_of_memory()
        if used.threads > MAX_THREADS:
            return StageCrashed(
                f"The stage was ended because it ran more than {MAX_THREADS:,} threads: use a "
                "smaller model, or see in the job's log what started them."
            )
        if sum(map(usage.written_bytes, members)) > self._may_write(pid, scratch):
            return self.out_of_disk()
        return self.broken_on_disk(scratch, unlinked_bytes=sum(map(usage.unlinked_bytes, members)))

    def _may_write(self, pid: int, scratch: Path) -> float:
        """Return how many bytes a stage may have written by now, what it has removed since included.

        One that trains replaces its state as long as it runs: as large as the one that lies there, as often as it may.
        """
        allowed = float(_REWRITES * self.scratch_bytes)
        if self.state is None:
            return allowed
        states = STATES + usage.age_seconds(pid) / max(self.state_seconds, 1.0)
        return allowed + states * min(usage.file_bytes(scratch / self.state), self.scratch_bytes)

    def broken_on_disk(self, scratch: Path, *, unlinked_bytes: int = 0) -> JobFailure | None:
        """Look at what a stage has in its folder; `unlinked_bytes` are files without a name that it holds open."""
        try:
            disk = usage.of_folder(scratch, most_entries=MAX_ENTRIES, most_depth=MAX_DEPTH)
        except OSError as error:
            return StageCrashed(
                f"The stage was ended because its folders cannot be looked into ({error.strerror}): "
                "send an upload whose folders can be read and have short names."
            )
        if disk.entries > MAX_ENTRIES:
            return OutOfDisk(
                f"The stage was ended because it made more than {MAX_ENTRIES:,} files: send an archive with fewer."
            )
        if disk.depth > MAX_DEPTH:
            return StageCrashed(
                f"The stage was ended because it nested more than {MAX_DEPTH} folders: send an archive with fewer."
            )
        if disk.size_bytes + unlinked_bytes > self.scratch_bytes:
            return self.out_of_disk()
        return None

    def explain(self, failure: JobFailure) -> JobFailure:
        """Name the limit: a stage knows only that an allocation or a write failed, not how much it was given."""
        if isinstance(failure, OutOfMemory):
            return self.out_of_memory()
        if isinstance(failure, OutOfDisk):
            return self.out_of_disk()
        return failure

    def out_of_memory(self) -> OutOfMemory:
        return OutOfMemory(
            f"The stage needs more than the {self.memory_bytes:,} bytes of memory it may take: "
            "use a smaller model or fewer rows, or raise OCTET_JOB_MEMORY_BYTES."
        )

    def out_of_disk(self) -> OutOfDisk:
        return OutOfDisk(
            f"The stage needs more than the {self.scratch_bytes:,} bytes of disk it may take, or the disk is full: "
            "use a smaller model, free some space, or raise OCTET_JOB_SCRATCH_BYTES."
        )

    def out_of_time(self) -> OutOfTime:
        return OutOfTime(
            f"The stage was not done after {self.seconds:g} seconds: "
            "use a smaller model or fewer rows, or raise OCTET_JOB_TIMEOUT_SECONDS."
        )
