"""How much memory a job's processes take, seen from outside; and the peak for 300 and for 5,000 calibration rows.

    python -m benchmarks.memory FOLDER [RECIPE ...]

FOLDER holds `resnet20.safetensors` and `cifar10.npz`. The bar is three times the float model plus 600 MB.
"""

import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import psutil

from app.client import Octet
from app.domain.recipes import PtqStatic, WeightOnly
from examples import resnet20
from examples.service import embedded_octet

MEGABYTE = 1e6
SAMPLE_SECONDS = 0.05
_STAGE = "workers.stage_child"

RECIPES: dict[str, PtqStatic | WeightOnly] = {
    "nncf, bias correction full": PtqStatic(),
    "nncf, observer mse": PtqStatic(observer="mse"),
    "nncf, observer percentile": PtqStatic(observer="percentile"),
    "ort, min_max": PtqStatic(toolchain="ort", fallback="keep"),
    "ort, entropy": PtqStatic(toolchain="ort", observer="entropy", fallback="keep"),
    "ort, percentile": PtqStatic(toolchain="ort", observer="percentile", fallback="keep"),
    "torchao": PtqStatic(toolchain="torchao", fallback="keep"),
    "4 bits, brecq": WeightOnly(bits=4, rounding="brecq"),
}
ROWS = (300, 5000)


class PeakMemory:
    """Samples the memory of a job's processes - the stage and the process that started it - inside a block.

    What is read is the proportional set size: pages that a process shares with the worker it was forked from, or with
    others that loaded the same library, count in part.
    """

    def __init__(self) -> None:
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def peak_mb(self) -> float:
        return self._peak / MEGABYTE

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._over.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, sum(map(_proportional, _job_processes(own))))


def _job_processes(own: psutil.Process) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for process in own.children(recursive=True):
        try:
            if _STAGE in process.cmdline():
                found |= {process, psutil.Process(process.ppid())}
        except psutil.NoSuchProcess:
            continue
    return found


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0  # it has just ended


def main(data: Path, only: Sequence[str]) -> None:
    """Quantize ResNet-20 with 300 and with 5,000 rows, with the recipes named or with all, and print the peaks."""
    module, images = resnet20.load(data / "resnet20.safetensors"), np.load(data / "cifar10.npz")
    train = np.concatenate([images["x_train"], images["x_train_lossless"]])[: max(ROWS)]
    with tempfile.TemporaryDirectory(prefix="octet-bench-") as name, embedded_octet(Path(name)) as octet:
        folder = Path(name)
        resnet20.export_pt2(module, folder / "resnet20.pt2", dynamic=True)
        np.savez(folder / "calibration.npz", x=resnet20.preprocess(train))
        np.savez(
            folder / "evaluation.npz", x=resnet20.preprocess(images["x_test"][:1000]), labels=images["y_test"][:1000]
        )
        octet.upload_model(folder / "resnet20.pt2", name="resnet20")
        octet.upload_dataset(folder / "calibration.npz", name="calibration")
        octet.upload_dataset(folder / "evaluation.npz", name="evaluation")
        octet.wait_model("resnet20")
        limit = 3 * octet.report("resnet20@float32").size.bytes / MEGABYTE + 600
        print(f"limit {limit:.0f} MB\n")
        print("| recipe | " + " | ".join(f"{rows:,} rows" for rows in ROWS) + " |\n| --- |" + " ---: |" * len(ROWS))
        for title in only or RECIPES:
            recipe = RECIPES[title]
            peaks = [_peak(octet, recipe, rows=rows) for rows in ROWS]
            print(f"| {title} | " + " | ".join(f"{peak:.0f} MB" for peak in peaks) + " |", flush=True)


def _peak(octet: Octet, recipe: PtqStatic | WeightOnly, *, rows: int) -> float:
    wanted = replace(recipe, calibration_rows=rows)
    with PeakMemory() as memory:
        job = octet.quantize("resnet20", calibration="calibration", evaluation="evaluation", recipe=wanted)
        octet.wait_success(job.id)
    return memory.peak_mb


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
