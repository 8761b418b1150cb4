"""The stage that weighs one form: loads it in a process that holds nothing else, and reads that process's memory."""

from pathlib import Path

import openvino as ov

from app.domain.reports import Memory
from workers.measure.engine import Session
from workers.measure.inputs import random_inputs
from workers.stage_records.common import Progress
from workers.stage_records.measuring import WeighResult, WeighSpec

RUNS = 5


def weigh(spec: WeighSpec, scratch: Path, progress: Progress) -> WeighResult:
    """Read the memory before the form is loaded and after it has answered.

    Raises:
        ToolchainFailed: OpenVINO cannot compile or run the form.
    """
    core = ov.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the CPU plugin, which belongs to the process, not to the form
    inputs = random_inputs(spec.signature, rows=1)
    before = pss_bytes()
    progress(0.1, f"loading {spec.form.name}")
    session = Session.open(spec.form, spec.signature, scratch=scratch, core=core)
    for _ in range(RUNS):
        session.infer(inputs)
    after = pss_bytes()
    return WeighResult(memory=Memory(pss_bytes=after, peak_bytes=peak_bytes(), added_bytes=max(0, after - before)))


def pss_bytes() -> int:
    """Return this process's proportional set size: its own pages, and its share of those it shares."""
    return _read("/proc/self/smaps_rollup", "Pss:")


def peak_bytes() -> int:
    """Return the high-water mark of this process's resident set."""
    return _read("/proc/self/status", "VmHWM:")


def _read(path: str, field: str) -> int:
    for line in Path(path).read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0
