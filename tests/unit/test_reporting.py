"""What a report says of a variant beyond the numbers, and how many rows it may answer at once."""

from dataclasses import replace

import pytest

from app.domain.evidence import Finding, Invariance, LayerReceipt, LayerRun, Receipt
from app.domain.recipes import PtqDynamic, PtqStatic, Single
from tests.unit.test_rows import REPORT
from tests.unit.test_search_plan import PARENT
from workers.jobs.measuring import Costs
from workers.jobs.publishing import batch_limit
from workers.jobs.reporting import Evidence, make_report
from workers.stage_records.measuring import CheckResult, ScoreResult

RUN = LayerRun(precision="u8", implementation="brgconv_avx512_i8", microseconds=1.0)
COSTS = Costs(forms=(), latency=REPORT.latency, kernels={}, memory={}, environment=REPORT.environment)
INT8 = replace(PARENT, name="int8")


def layer(name: str, *, quantized: bool, ran: bool) -> LayerReceipt:
    return LayerReceipt(name=name, kind="Conv", quantized=quantized, float32=RUN, variant=RUN if ran else None)


def notes(*layers: LayerReceipt) -> list[str]:
    receipt = Receipt(layers=layers, fallbacks=(), conversion_share=0.0, conversions=())
    report = make_report(INT8, Evidence(costs=replace(COSTS, receipt=receipt)), float32=PARENT)
    return [note for note in report.notes if "traced" in note]


def test_quantized_layers_that_the_engine_does_not_name_are_named() -> None:
    lost = [layer(f"conv{number}", quantized=True, ran=False) for number in range(7)]
    (note,) = notes(layer("seen", quantized=True, ran=True), *lost)
    assert note == (
        "7 quantized layers could not be traced in the engine's graph: conv0, conv1, conv2, conv3, conv4 and 2 more."
    )


def test_layers_left_in_float_are_not_missed() -> None:
    assert notes(layer("seen", quantized=True, ran=True), layer("float", quantized=False, ran=False)) == []


def test_the_libraries_that_measured_are_those_that_were_seen() -> None:
    environment = replace(REPORT.environment, libraries={"openvino": "2026.4"})
    claimed = {"openvino": "1.0", "torchao": "0.1"}
    report = make_report(
        INT8, Evidence(costs=replace(COSTS, environment=environment)), float32=PARENT, made_with=claimed
    )
    assert report.environment.libraries == {"openvino": "2026.4", "torchao": "0.1"}


def test_what_the_answers_make_doubtful_stands_before_what_the_rows_do() -> None:
    one, other = (Finding(code=code, severity="note", message="m") for code in ("answers", "rows"))
    score = ScoreResult(accuracy=None, fidelity={}, findings=(one,))
    check = CheckResult(findings=(other,), histograms=())
    report = make_report(INT8, Evidence(costs=COSTS, score=score, check=check), float32=PARENT)
    assert report.findings == (one, other)


@pytest.mark.parametrize(
    ("recipe", "invariant", "limit"),
    [
        (PtqStatic(), True, None),
        (PtqStatic(), False, 1),
        (PtqStatic(), None, None),
        (PtqDynamic(toolchain="ort"), True, None),
        (PtqDynamic(toolchain="ort"), None, 1),
        (PtqDynamic(), None, None),
    ],
)
def test_a_variant_whose_rows_may_depend_on_each_other_answers_one_at_a_time(
    recipe: Single, *, invariant: bool | None, limit: int | None
) -> None:
    seen = None
    if invariant is not None:
        seen = Invariance(invariant=invariant, largest_difference=0.0, rows=2, batch_size=2)
    score = ScoreResult(accuracy=None, fidelity={}, invariance=seen)
    assert batch_limit(Evidence(costs=COSTS, score=score), recipe) == limit
