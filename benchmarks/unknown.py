"""`auto` against every single toolchain's default, on small trained models of many kinds (`benchmarks.tasks`).

    python -m benchmarks.unknown [--only NAME ...] [--json FILE]

The bar: `auto` loses at most half of what the best default loses, at 0.9 of its speed or better. The best default
is the one that loses least. What is lost is read twice: in the task's own metric, which some hundred rows tell only
roughly, and as noise, 1 - cosine with float32's outputs, which they tell well. Every variant is timed in a job of its
own, beside float32, so speeds are compared as ratios of ratios.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from app.client import Octet
from app.domain.errors import OctetError
from app.domain.metrics import METRICS
from app.domain.recipes import Auto, Budget, Recipe
from app.domain.reports import Report
from benchmarks.quantization import DEFAULTS
from benchmarks.tasks import TASKS, Task, write
from examples.service import embedded_octet

BUDGETS = {"top1": 0.005, "miou": 0.005, "psnr": 0.1, "mae": 0.005}
SECONDS = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One variant of one model: the metric's drop, the noise, and how much faster it is than float32."""

    model: str
    recipe: str
    drop: float | None = None
    noise: float | None = None
    speedup: float | None = None
    size: float | None = None
    note: str = ""


def compare(octet: Octet, name: str, task: Task, folder: Path) -> Iterator[Line]:
    """Upload one trained model, run the defaults and then `auto`."""
    model, calibration, evaluation = write(task, folder)
    octet.upload_model(model, name=name)
    octet.upload_dataset(calibration, name=f"{name}-calibration")
    octet.upload_dataset(evaluation, name=f"{name}-evaluation")
    octet.wait_model(name)
    budget = Budget(metric=task.metric, max_drop=BUDGETS[task.metric])
    recipes: dict[str, Recipe] = {
        **{title: replace(recipe, fallback="keep") for title, recipe in DEFAULTS.items()},  # type: ignore[arg-type]
        "auto": Auto(budget=budget, time_limit_seconds=SECONDS),
    }
    for title, recipe in recipes.items():
        yield _line(octet, name, title, recipe, metric=task.metric)


def _line(octet: Octet, name: str, title: str, recipe: Recipe, *, metric: str) -> Line:
    job = octet.quantize(
        name,
        calibration=f"{name}-calibration",
        evaluation=f"{name}-evaluation",
        recipe=recipe,
        variant=title.replace(" ", "-"),
    )
    try:
        done = octet.wait_success(job.id)
    except OctetError as error:
        return Line(model=name, recipe=title, note=error.message)
    report = octet.report(f"{name}@{done.variant}")
    return Line(
        model=name,
        recipe=title,
        drop=_drop(report, metric),
        noise=1 - report.fidelity[report.variant].cosine,
        speedup=report.latency[report.variant].speedup,
        size=report.size.ratio,
        note=report.search.reason if report.search else "",
    )


def _drop(report: Report, metric: str) -> float | None:
    return next((each.drop.value for each in report.metrics if each.name == metric), None)


def verdict(lines: list[Line]) -> str:
    """Say how `auto` did beside the default that loses least."""
    *defaults, auto = lines
    made = [each for each in defaults if each.noise is not None and each.speedup is not None]
    if auto.noise is None or auto.speedup is None:
        return "auto made nothing"
    if not made:
        return "no default could quantize it"
    best = min(made, key=lambda each: each.noise or 0.0)
    noise = auto.noise / best.noise if best.noise else float("inf" if auto.noise else "nan")
    return (
        f"beside {best.recipe}: {noise:.2f} of its noise, drop {_number(auto.drop)} against {_number(best.drop)}, "
        f"{auto.speedup / (best.speedup or 1):.2f} of its speed"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="models to run, all by default")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch's exporter talks much of itself
    every: list[Line] = []
    print("| model | metric | recipe | drop | noise | beside float32 | size |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="octet-bench-") as place, embedded_octet(Path(place)) as octet:
        for name in arguments.only or TASKS:
            torch.manual_seed(0)
            task, folder = TASKS[name](), Path(place) / name
            folder.mkdir()
            lines = []
            for line in compare(octet, name, task, folder):
                lines.append(line)
                print(_row(line, task.metric), flush=True)
            print(f"| **{name}** | | {verdict(lines)} | | | | |", flush=True)
            every += lines
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(line) for line in every], indent=2))
    return 0


def _row(line: Line, metric: str) -> str:
    if line.noise is None or line.speedup is None:
        return f"| {line.model} | {metric} | {line.recipe} | {line.note} | | | |"
    unit = METRICS[metric].unit
    return (
        f"| {line.model} | {metric} | {line.recipe} | {_number(line.drop)} {unit} | {line.noise:.2e} "
        f"| {line.speedup:.2f} x | {line.size:.3f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
