"""What a tree of processes takes: processor seconds, and memory with shared pages counted in part (PSS)."""

from collections.abc import Iterator

import psutil

MEBIBYTE = 2**20


def tree(root: int) -> list[psutil.Process]:
    """Return a process and all that descend from it, as far as they are there."""
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def processor_seconds(root: int) -> float:
    """Return what a tree's living processes have computed, and what their dead children had."""
    return sum(_seconds(process) for process in tree(root))


def machine_seconds() -> float:
    """Return the processor seconds that the whole machine has computed."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def pss_mebibytes(root: int) -> float:
    """Return the memory of a tree."""
    return sum(map(pss, tree(root))) / MEBIBYTE


def pss(process: psutil.Process) -> int:
    """Return a process's memory in bytes; 0 once it is gone."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def with_words(root: int, words: str) -> list[psutil.Process]:
    """Return a tree's processes whose command line has these words."""
    return [process for process in tree(root) if words in " ".join(_command_line(process))]


def holding_the_engine(root: int) -> list[psutil.Process]:
    """Return a tree's processes that have OpenVINO's CPU plugin mapped: those that hold a compiled model."""
    return [process for process in tree(root) if any("intel_cpu_plugin" in path for path in _mapped(process))]


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def _mapped(process: psutil.Process) -> Iterator[str]:
    try:
        yield from (region.path for region in process.memory_maps())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return
