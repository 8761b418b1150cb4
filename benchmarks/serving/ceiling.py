"""The in-process ceiling, measured in a process of its own beside the servers."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.calls import PIXELS, Body
from benchmarks.serving.home import REPOSITORY
from benchmarks.serving.points import Point
from benchmarks.serving.subject import Subject

NAME = "ceiling"
TITLE = "in-process ceiling"


def ceiling(
    subject: Subject, *, body: Body, concurrencies: Sequence[int], seconds: float
) -> Mapping[tuple[int, int], Point]:
    """Return a point for each concurrency and number of streams; for one client a synchronous call with all threads."""
    rows: dict[str, Any] = {"golden": subject.golden}
    rows["pixels" if body in PIXELS else "floats"] = subject.pixels if body in PIXELS else subject.floats
    with tempfile.TemporaryDirectory(prefix="octet-bench-serving-") as folder:
        file = Path(folder) / "rows.npz"
        np.savez(file, **rows)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.serving.peers.ceiling", str(file), str(seconds)]
            + [str(concurrency) for concurrency in concurrencies],
            env={**os.environ, "BENCH_ARTIFACT": str(subject.artifact), "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            check=True,
        )
    return {(one.pop("jobs"), one.pop("streams")): Point(**one) for one in json.loads(done.stdout)}
