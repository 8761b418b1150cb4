"""Wall time of the main job, upload to published variant, split by step; and the latency table, as ratios.

    python -m benchmarks.main_job [--json FILE]

Digits (real data) and a model of ResNet-18's shape (random weights) go through an Octet of their own, over HTTP.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.client import Octet
from app.domain.jobs import Job
from app.domain.recipes import PtqStatic
from app.domain.reports import Report
from benchmarks.shapes import write_resnet18
from examples import digits
from examples.service import embedded_octet

Files = tuple[Path, Path, Path]


def write_digits(folder: Path) -> Files:
    """Train the demo's model."""
    digits.main(folder)
    return folder / "digits.pt2", folder / "calibration.npz", folder / "evaluation.npz"


SUBJECTS: dict[str, Callable[[Path], Files]] = {"digits": write_digits, "resnet18": write_resnet18}


def main_job(octet: Octet, name: str, files: Files) -> dict[str, Any]:
    """Do the whole job for one model; return its times, in seconds, and its report."""
    model, calibration, evaluation = files
    began = time.perf_counter()
    octet.upload_model(model, name=name)
    octet.upload_dataset(calibration, name=f"{name}-calibration")
    octet.upload_dataset(evaluation, name=f"{name}-evaluation")
    uploaded = time.perf_counter()
    imported = octet.job(octet.wait_model(name).import_job)
    quantized = octet.wait_success(
        octet.quantize(name, calibration=f"{name}-calibration", evaluation=f"{name}-evaluation", recipe=PtqStatic()).id
    )
    ended = time.perf_counter()
    report = octet.report(f"{name}@{quantized.variant}")
    return {
        "wall": ended - began,
        "upload": uploaded - began,
        "import": steps(imported),
        "quantize": steps(quantized),
        "report": report,
    }


def steps(job: Job) -> dict[str, float]:
    """Return the seconds of every step of a job."""
    return {step.step: step.seconds for step in job.steps}


def show(name: str, measured: dict[str, Any]) -> None:
    """Print one model's times and its latency table."""
    print(f"\n## {name}: upload to published variant in {measured['wall']:.1f} s\n")
    print("| step | seconds | share |\n| --- | ---: | ---: |")
    rows = {"upload": measured["upload"]}
    rows |= {f"{kind}: {step}": seconds for kind in ("import", "quantize") for step, seconds in measured[kind].items()}
    for step, seconds in rows.items():
        print(f"| {step} | {seconds:.2f} | {seconds / measured['wall']:.0%} |")
    print(latency_table(measured["report"]))


def latency_table(report: Report) -> str:
    """Write latency and memory of every form beside float32's."""
    float32 = report.latency["float32"]
    lines = [
        "\n| form | p50 | p99 / p50 | rows/s | size | memory added |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for form, latency in report.latency.items():
        size = report.size.ratio if form == report.variant else 1.0
        memory = report.memory[form].added_bytes / report.memory["float32"].added_bytes
        lines.append(
            f"| {form} | {latency.speedup:.2f}x faster | {latency.p99_ms / latency.p50_ms:.1f} "
            f"| {latency.rows_per_second / float32.rows_per_second:.2f}x | {size:.2f}x | {memory:.2f}x |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the times here")
    arguments = parser.parse_args()
    times: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="octet-bench-") as folder, embedded_octet(Path(folder)) as octet:
        for name, write in SUBJECTS.items():
            place = Path(folder) / name
            place.mkdir()
            measured = main_job(octet, name, write(place))
            show(name, measured)
            times[name] = {key: value for key, value in measured.items() if key != "report"}
    if arguments.json:
        arguments.json.write_text(json.dumps(times, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
