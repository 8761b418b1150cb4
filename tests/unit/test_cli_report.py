"""The report as a table for the terminal."""

from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO

import pytest
from rich.console import Console

from app.client.report_evidence import drop_words
from app.client.report_table import HEADINGS, cells, forms, report_view, sentences
from app.domain.evidence import Interval, Invariance
from app.domain.recipes import PtqStatic
from app.domain.reports import (
    Accuracy,
    Difference,
    Environment,
    Fidelity,
    Flips,
    Kernels,
    Latency,
    Layer,
    Memory,
    Proportion,
    Report,
    Size,
)
from tests.reports import full_report


def share(count: int, rows: int = 1000) -> Proportion:
    return Proportion(value=count / rows, low=count / rows - 0.01, high=count / rows + 0.01, count=count, rows=rows)


def latency(p50_ms: float) -> Latency:
    return Latency(
        p50_ms=p50_ms,
        p95_ms=p50_ms * 2,
        p99_ms=p50_ms * 3,
        speedup=1 / p50_ms,
        runs=200,
        rows_per_second=1000,
        batch_size=16,
    )


def layer(precision: str) -> Layer:
    return Layer(name="conv", kind="Convolution", precision=precision, implementation="brgconv", microseconds=1.0)


def fidelity(count: int) -> Fidelity:
    return Fidelity(agreement=share(count), sqnr_db=30.0, cosine=0.99, kl=0.01)


REPORT = Report(
    model="resnet20",
    version=3,
    variant="int8",
    artifact_sha256="0" * 64,
    recipe=PtqStatic(),
    size=Size(bytes=300_000, float32_bytes=1_100_000, ratio=0.2727),
    calibration=None,
    evaluation=None,
    accuracy=Accuracy(
        metric="top1",
        measured={"float32": share(950), "bfloat16": share(950), "int8": share(948)},
        difference=Difference(value=-0.002, low=-0.005, high=0.001),
        flips=Flips(gained=(1,), lost=(2, 3, 4), moved=(5,)),
        classes=(),
    ),
    fidelity={"bfloat16": fidelity(999), "int8": fidelity(985)},
    latency={"float32": latency(1.0), "bfloat16": latency(0.8), "int8": latency(0.5)},
    memory={"float32": Memory(pss_bytes=9, peak_bytes=9, added_bytes=8_000_000)},
    kernels={
        "int8": Kernels(layers=(layer("u8"), layer("f32")), int8_layers=1, float_layers=1, int8_share=0.9),
    },
    conversion=None,
    environment=Environment(cpu="c", instructions=(), cores=2, memory_bytes=1, kernel="6", libraries={}),
    notes=("The interval is wide.",),
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
)


def printed(report: Report, *, width: int) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(report_view(report, width=width))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_float32_comes_first_and_the_variant_last() -> None:
    assert forms(REPORT) == ["float32", "bfloat16", "int8"]


def test_the_report_of_float32_has_one_line() -> None:
    float32 = {"latency": {"float32": latency(1.0)}, "fidelity": {}, "kernels": {}, "accuracy": None}
    assert forms(replace(REPORT, variant="float32", **float32)) == ["float32"]  # type: ignore[arg-type]


def test_a_line_has_a_cell_for_every_heading() -> None:
    int8 = dict(zip(HEADINGS, cells(REPORT)[-1], strict=True))
    assert int8["accuracy (95 %)"] == "94.80 % (93.80 to 95.80)"
    assert (int8["agreement"], int8["size"], int8["p50"]) == ("98.50 %", "300.0 kB (27 %)", "0.500 ms")
    assert (int8["speed-up"], int8["memory added"]) == ("2.00 x", "-")


def test_the_words_tell_flips_kernels_and_notes() -> None:
    flips, kernels, note = sentences(REPORT)
    assert "-0.20 points" in flips
    assert "of the answers 3 lost, 1 gained, 1 wrong in another way" in flips
    assert "1 of 2 layers in int8: 90 %" in kernels
    assert note == "The interval is wide."


def test_a_report_without_labels_shows_no_accuracy() -> None:
    unlabelled = replace(REPORT, accuracy=None)
    assert cells(unlabelled)[-1][1] == "-"
    assert len(sentences(unlabelled)) == 2


@pytest.mark.parametrize("width", range(60, 130, 5))
def test_no_terminal_width_loses_a_number(width: int) -> None:
    text = " ".join(printed(REPORT, width=width).split())
    for number in ("0.500 ms", "2.00 x", "98.50 %", "8.0 MB"):
        assert number in text
    assert "…" not in text


def test_a_wide_terminal_gets_a_line_per_form() -> None:
    (line,) = (line for line in printed(REPORT, width=120).splitlines() if "0.500 ms" in line)
    assert "int8" in line
    assert "94.80 % (93.80 to 95.80)" in line


FULL = full_report()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_whole_report_fits_every_terminal(width: int) -> None:
    lines = printed(FULL, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)


@pytest.mark.parametrize(
    "words",
    [
        "Budget kept: The drop of top1 is at most 0.34 points",
        "+0.12 points (-0.10 to +0.34)",
        "Search: 11 trials, 1 of them without success, 4 on the Pareto front.",
        "Chosen on 4,700 rows that did not score: Trial 6 is the fastest",
        "warning: 2 calibration rows are inside the evaluation set",
        "Why is it not faster?",
        "Next: Learn the rounding with adaround.",
    ],
)
def test_the_terminal_tells_what_the_page_does(words: str) -> None:
    assert words in " ".join(printed(FULL, width=200).split())


def test_a_warning_comes_before_a_note() -> None:
    text = printed(FULL, width=200)
    assert text.index("warning: ") < text.index("note: ")


def test_the_rows_that_would_tell_are_named() -> None:
    assert FULL.verdict is not None
    unsure = replace(FULL, verdict=replace(FULL.verdict, outcome="not enough rows", rows_needed=44_000))
    assert "About 44,000 rows would tell." in printed(unsure, width=200)


def test_a_variant_that_depends_on_its_neighbours_is_said() -> None:
    assert not any("one row at a time" in sentence for sentence in sentences(FULL))
    dependent = Invariance(invariant=False, largest_difference=0.01, rows=16, batch_size=8)
    assert any("one row at a time" in sentence for sentence in sentences(replace(FULL, invariance=dependent)))


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("top1", "+1.00 points (-1.00 to +3.00)"),
        ("f1", "+1.00 points (-1.00 to +3.00)"),
        ("psnr", "+0.01 dB (-0.01 to +0.03)"),
        ("mae", "+0.01000 (-0.01000 to +0.03000)"),
    ],
)
def test_a_drop_has_its_metric_s_unit(metric: str, words: str) -> None:
    assert drop_words(metric, Interval(value=0.01, low=-0.01, high=0.03)) == words


def test_no_zero_has_a_minus() -> None:
    assert drop_words("top1", Interval(value=-0.0, low=-0.00001, high=0.0)) == "+0.00 points (+0.00 to +0.00)"


@pytest.mark.parametrize("width", [80, 200])
def test_a_distance_from_float32_has_no_drop(width: int) -> None:
    only = replace(FULL.metrics[0], name="sqnr")
    (line,) = (line for line in printed(replace(FULL, metrics=(only,)), width=width).splitlines() if "sqnr" in line)
    assert ("drop" in line, "points" in line) == (False, False)
