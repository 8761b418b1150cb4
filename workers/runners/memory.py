"""How much memory this process takes, as the kernel counts it."""

from pathlib import Path

from app.domain.runners import MemoryUse


def memory_use() -> MemoryUse:
    """Read the proportional set size and the high-water mark of the resident set."""
    return MemoryUse(
        pss_bytes=_kilobytes(Path("/proc/self/smaps_rollup"), "Pss:") * 1024,
        peak_bytes=_kilobytes(Path("/proc/self/status"), "VmHWM:") * 1024,
    )


def _kilobytes(file: Path, field: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"{file} has no line {field!r}.")
