"""Every toolchain's default and every technique on real weights and on well-known shapes, and `auto` last.

    python -m benchmarks.quantization [--data FOLDER] [--only MODEL ...] [--recipes NAME ...]
        [--json FILE] [--plot FILE.svg]

FOLDER holds `resnet20.safetensors` and `cifar10.npz` (JPEG copies of CIFAR-10's images); without it ResNet-20 is left
out. ResNet-20 and digits have real weights; ResNet-18, MobileNetV2 and BERT only their shape, with random weights:
speed and size are real, answers mean nothing. Every row is one job of a running Octet, and every ratio comes
from the report of that job: float32, bfloat16 and the variant measured interleaved in one process.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from app.client import Octet
from app.domain.errors import OctetError
from app.domain.recipes import Auto, Budget, Cast, PtqDynamic, PtqStatic, Recipe, WeightOnly
from app.domain.reports import Report
from benchmarks import shapes
from benchmarks.memory import PeakMemory
from benchmarks.plots import scatter
from examples import digits, resnet20
from examples.service import embedded_octet

Files = tuple[Path, Path, Path]
"""Model, calibration rows, evaluation rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of a table; everything is a ratio or a difference within one job.

    Attributes:
        speedup, beside_bfloat16: float32's and bfloat16's p50 over the variant's.
        drop: of top-1, in points, with its interval; positive is worse. None without labels.
        agreement: share of rows answered as float32 does; None where the outputs are no classes.
        peak_mb: largest resident memory of the job's processes together, in MB.
        failure: the job's sentence, where it failed.
    """

    name: str
    seconds: float
    peak_mb: float
    speedup: float | None = None
    beside_bfloat16: float | None = None
    size: float | None = None
    drop: tuple[float, float, float] | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    note: str = ""
    failure: str = ""


DEFAULTS: Mapping[str, Recipe] = {
    "nncf default": PtqStatic(),
    "ort default": PtqStatic(toolchain="ort", fallback="keep"),
    "torchao default": PtqStatic(toolchain="torchao", fallback="keep"),
}
CAST: Mapping[str, Recipe] = {"cast bfloat16": Cast(), "cast float16": Cast(precision="float16")}
IMAGES: Mapping[str, Recipe] = {
    **DEFAULTS,
    "nncf asymmetric": PtqStatic(activations="asymmetric"),
    "nncf mse": PtqStatic(observer="mse"),
    "nncf percentile": PtqStatic(observer="percentile"),
    "nncf equalized": PtqStatic(channel_equalization=True),
    "ort entropy": PtqStatic(toolchain="ort", observer="entropy", fallback="keep"),
    **CAST,
    "weight_only int8": WeightOnly(),
}
NARROW: Mapping[str, Recipe] = {
    "w4 nearest": WeightOnly(bits=4),
    "w4 gptq": WeightOnly(bits=4, rounding="gptq", calibration_rows=300),
    "w4 adaround": WeightOnly(bits=4, rounding="adaround", calibration_rows=300),
    "w4 brecq": WeightOnly(bits=4, rounding="brecq", calibration_rows=300),
    "w4a8 nearest": PtqStatic(weight_bits=4),
    "w4a8 brecq": PtqStatic(weight_bits=4, rounding="brecq"),
}
WORDS: Mapping[str, Recipe] = {
    **DEFAULTS,
    "nncf smooth_quant 0.5": PtqStatic(smooth_quant=0.5),
    "ptq_dynamic": PtqDynamic(),
    **CAST,
    "weight_only int8": WeightOnly(),
    "weight_only int4": WeightOnly(bits=4, group_size=64),
    "weight_only int4, awq": WeightOnly(bits=4, group_size=64, awq=True, scale_estimation=True, calibration_rows=32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One model: what writes its files, the recipes it is put through, and the search that comes last."""

    write: Callable[[Path], Files]
    recipes: Mapping[str, Recipe]
    auto: Auto


def _auto(*, max_drop: float, seconds: int = 240, metric: str | None = None) -> Auto:
    return Auto(budget=Budget(metric=metric, max_drop=max_drop), time_limit_seconds=seconds)


def subjects(data: Path | None) -> dict[str, Subject]:
    """Return the models of the benchmark; ResNet-20 only where its weights are."""
    found = {
        "digits": Subject(write=write_digits, recipes=IMAGES, auto=_auto(max_drop=0.005)),
        "resnet18": Subject(write=shapes.write_resnet18, recipes=IMAGES, auto=_auto(metric="cosine", max_drop=0.01)),
        "mobilenetv2": Subject(
            write=shapes.write_mobilenetv2, recipes=IMAGES, auto=_auto(metric="cosine", max_drop=0.01)
        ),
        "bert": Subject(write=shapes.write_bert, recipes=WORDS, auto=_auto(metric="cosine", max_drop=0.01)),
    }
    if data is None:
        return found
    real = Subject(
        write=lambda folder: write_resnet20(folder, data=data),
        recipes={**IMAGES, **NARROW},
        auto=_auto(metric="top1", max_drop=0.003),
    )
    return {"resnet20": real, **found}


def write_digits(folder: Path) -> Files:
    """Train the demo's model."""
    digits.main(folder)
    return folder / "digits.pt2", folder / "calibration.npz", folder / "evaluation.npz"


def write_resnet20(folder: Path, *, data: Path) -> Files:
    """Write the real weights as `.pt2`, 2,000 train rows to calibrate and choose with, 10,000 test rows to score."""
    module, images = resnet20.load(data / "resnet20.safetensors"), np.load(data / "cifar10.npz")
    resnet20.export_pt2(module, folder / "resnet20.pt2", dynamic=True)
    for part, name in (("train", "calibration"), ("test", "evaluation")):
        labels = images[f"y_{part}"].astype(np.int64)
        np.savez(folder / f"{name}.npz", x=resnet20.preprocess(images[f"x_{part}"]), labels=labels)
    return folder / "resnet20.pt2", folder / "calibration.npz", folder / "evaluation.npz"


def measure(
    octet: Octet, subject: Subject, *, name: str, folder: Path, only: Sequence[str] | None = None
) -> Iterator[Line]:
    """Put one model through all its recipes, or those named, one job after the other, `auto` last."""
    model, calibration, evaluation = subject.write(folder)
    octet.upload_model(model, name=name)
    octet.upload_dataset(calibration, name=f"{name}-calibration")
    octet.upload_dataset(evaluation, name=f"{name}-evaluation")
    octet.wait_model(name)
    for title, recipe in {**subject.recipes, "auto": subject.auto}.items():
        if only is None or title in only:
            yield _job(octet, name, title, recipe)


def _job(octet: Octet, name: str, title: str, recipe: Recipe) -> Line:
    began = time.perf_counter()
    with PeakMemory() as memory:
        job = octet.quantize(
            name,
            calibration=f"{name}-calibration",
            evaluation=f"{name}-evaluation",
            recipe=recipe,
            variant=title.replace(" ", "-").replace(",", "").replace(".", "-").replace("_", "-"),
        )
        try:
            done = octet.wait_success(job.id)
        except OctetError as error:
            seconds = time.perf_counter() - began
            return Line(name=title, seconds=seconds, peak_mb=memory.peak_mb, failure=error.message)
    seconds = time.perf_counter() - began
    return line(title, octet.report(f"{name}@{done.variant}"), seconds=seconds, peak_mb=memory.peak_mb)


def line(title: str, report: Report, *, seconds: float, peak_mb: float) -> Line:
    """Read one row out of a report."""
    mine = report.latency[report.variant]
    bfloat16 = report.latency.get("bfloat16")
    fidelity = report.fidelity[report.variant]
    change = report.accuracy.difference if report.accuracy else None
    verdict = f"{report.verdict.outcome}; " if report.verdict else ""
    return Line(
        name=title,
        seconds=seconds,
        peak_mb=peak_mb,
        speedup=mine.speedup,
        beside_bfloat16=bfloat16.p50_ms / mine.p50_ms if bfloat16 else None,
        size=report.size.ratio,
        drop=(-100 * change.value, -100 * change.high, -100 * change.low) if change else None,
        agreement=fidelity.agreement.value if fidelity.agreement else None,
        sqnr_db=fidelity.sqnr_db,
        note=verdict + report.search.reason if report.search else "",
    )


def table(name: str, lines: Sequence[Line]) -> str:
    """Write one model's rows."""
    head = [
        f"\n## {name}\n",
        "| recipe | drop of top-1 (95 %) | agreement | SQNR | beside float32 | beside bfloat16 | size | job | peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join([*head, *(_row(each) for each in lines)])


def _row(each: Line) -> str:
    if each.failure:
        return f"| {each.name} | {each.failure} | | | | | | {each.seconds:.0f} s | {each.peak_mb:.0f} MB |"
    drop = "{:+.2f} ({:+.2f} to {:+.2f})".format(*each.drop) if each.drop else "-"
    return (
        f"| {each.name} | {drop} | {_share(each.agreement)} | {_number(each.sqnr_db, 'dB', 1)} "
        f"| {_number(each.speedup, 'x', 2)} | {_number(each.beside_bfloat16, 'x', 2)} | {_number(each.size, '', 3)} "
        f"| {each.seconds:.0f} s | {each.peak_mb:.0f} MB |"
    )


def _number(value: float | None, unit: str, digits_after: int) -> str:
    return "-" if value is None else f"{value:.{digits_after}f} {unit}".strip()


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with ResNet-20's weights and images")
    parser.add_argument("--only", nargs="+", help="models to run, all by default")
    parser.add_argument("--recipes", nargs="+", help="rows to run, all by default")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--plot", type=Path, help="also draw speed against closeness to float32 here, as SVG")
    arguments = parser.parse_args()
    rows: dict[str, list[Line]] = {}
    with tempfile.TemporaryDirectory(prefix="octet-bench-") as name, embedded_octet(Path(name)) as octet:
        for model, subject in subjects(arguments.data).items():
            if arguments.only and model not in arguments.only:
                continue
            folder = Path(name) / model
            folder.mkdir()
            rows[model] = []
            for each in measure(octet, subject, name=model, folder=folder, only=arguments.recipes):
                rows[model].append(each)
                print(_row(each), file=sys.stderr, flush=True)
            print(table(model, rows[model]), flush=True)
    if arguments.json:
        content = {model: [asdict(each) for each in lines] for model, lines in rows.items()}
        arguments.json.write_text(json.dumps(content, indent=2))
    if arguments.plot:
        arguments.plot.write_text(scatter({model: _points(lines) for model, lines in rows.items()}))
    return 0


def _points(lines: Sequence[Line]) -> list[tuple[str, float, float]]:
    return [
        (each.name, each.speedup, each.sqnr_db)
        for each in lines
        if each.speedup is not None and each.sqnr_db is not None
    ]


if __name__ == "__main__":
    sys.exit(main())
