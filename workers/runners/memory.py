"""How much memory this process takes, as the kernel counts it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """The proportional set size, and the resident set's high-water mark."""

    pss_bytes: int
    peak_bytes: int


def memory_use() -> MemoryUse:
    """Read both of this process."""
    return MemoryUse(
        pss_bytes=_kilobytes(Path("/proc/self/smaps_rollup"), "Pss:") * 1024,
        peak_bytes=_kilobytes(Path("/proc/self/status"), "VmHWM:") * 1024,
    )


def _kilobytes(file: Path, field: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"{file} has no line {field!r}.")
