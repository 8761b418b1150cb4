"""report.html and the schema of report.json."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from math import isfinite
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from app.api import examples
from app.domain.evidence import Histogram, Interval, LayerReceipt, Verdict
from app.domain.recipes import Auto, Cast, PtqStatic, Qat, Recipe, WeightOnly
from app.domain.recipes.summary import summary
from app.domain.reports import ClassAccuracy, Flips, Report
from app.report_schema import page, report_schema
from app.web import charts, evidence, wording
from app.web.charts.layers import MOST_LAYERS
from app.web.page import content_security_policy, render
from app.web.svg import Axis, axis_over, element
from tests.reports import VARIANT, full_report
from tests.trained import trained_report

DOCS = Path(__file__).parents[2] / "docs"
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
FULL = full_report()


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]


def oldest() -> Report:
    """Return a report as the first schema version had it."""
    later = {"execution", "metrics", "verdict", "receipt", "findings", "diagnosis", "invariance"}
    known = {name: value for name, value in examples.REPORT.items() if name not in later}
    report: Report = TypeAdapter(Report).validate_python({**known, "schema_version": 1})
    return report


def read(report: Report) -> Page:
    return Page(render(report))


def test_the_page_begins_with_the_verdict_and_the_numbers() -> None:
    text = read(FULL).text.replace(wording.SPACE, " ")
    assert "✓ budget kept" in text
    assert "2.61\u00d7 as fast as float32, 27 % of its size, top-1 0.12 points worse" in text
    assert "95 %: 0.10 points better to 0.34 points worse" in text


@pytest.mark.parametrize(
    "part",
    [
        "Search",
        "Latency",
        "Memory",
        "What ran, layer by layer",
        "Sensitivity",
        "Weights before and after",
        "Activations before and after",
        "Classes",
        "Rows that changed their answer",
        "Diagnosis",
        "Checks and notes",
    ],
)
def test_the_page_shows_every_part_there_is(part: str) -> None:
    assert f"<h2>{part}</h2>" in render(FULL)


def test_a_report_of_the_first_schema_has_no_empty_parts() -> None:
    report = oldest()
    text = render(report)
    assert (report.schema_version, report.metrics) == (1, ())
    assert "<h2>Accuracy</h2>" in text
    for absent in ("Search", "What ran", "Sensitivity", "Diagnosis", "before and after"):
        assert f"<h2>{absent}" not in text


def test_the_page_of_float32_compares_it_with_nothing() -> None:
    only = {"float32": FULL.latency["float32"]}
    text = read(
        replace(oldest(), variant="float32", accuracy=None, fidelity={}, latency=only, kernels={}, recipe=None)
    ).text
    assert "The reference:" in text
    assert "as fast as" not in text


def test_a_report_without_any_measurement_still_has_a_page() -> None:
    bare = replace(
        oldest(), accuracy=None, fidelity={}, latency={}, memory={}, kernels={}, evaluation=None, recipe=None
    )
    assert "<h2>Size</h2>" in render(bare)


@pytest.mark.parametrize("outcome", ["missed", "not enough rows"])
def test_a_verdict_that_is_not_kept_is_said(outcome: Any) -> None:
    assert FULL.verdict is not None
    verdict: Verdict = replace(FULL.verdict, outcome=outcome, rows_needed=44_000)
    text = read(replace(FULL, verdict=verdict)).text
    assert outcome in text
    assert "About 44,000 rows would tell" in text


def hostile() -> Report:
    assert FULL.receipt is not None
    assert FULL.accuracy is not None
    layers: tuple[LayerReceipt, ...] = (replace(FULL.receipt.layers[0], name=HOSTILE), *FULL.receipt.layers[1:])
    classes = (ClassAccuracy(name=HOSTILE, rows=1, float32=1.0, variant=0.0),)
    return replace(
        FULL,
        model=HOSTILE,
        receipt=replace(FULL.receipt, layers=layers, conversions=(HOSTILE,)),
        accuracy=replace(FULL.accuracy, classes=classes),
        gallery=tuple(replace(flip, label=HOSTILE, variant=HOSTILE, png=HOSTILE) for flip in FULL.gallery),
        histograms=tuple(replace(histogram, layer=HOSTILE) for histogram in FULL.histograms),
        sensitivity=tuple(replace(layer, name=HOSTILE, kind=HOSTILE) for layer in FULL.sensitivity),
        findings=tuple(replace(finding, message=HOSTILE) for finding in FULL.findings),
        diagnosis=tuple(replace(one, answer=(HOSTILE,), next=(HOSTILE,)) for one in FULL.diagnosis),
        environment=replace(FULL.environment, cpu=HOSTILE, libraries={HOSTILE: HOSTILE}),
        recipe=PtqStatic(float_layers=(HOSTILE,)),
        notes=(HOSTILE,),
    )


def test_hostile_names_stay_text() -> None:
    found = read(hostile())
    assert not [tag for tag, _ in found.tags if tag in ("script", "iframe", "object", "base")]
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert found.text.count(HOSTILE) > 20


@pytest.mark.parametrize("report", [FULL, hostile(), oldest()], ids=["full", "hostile", "oldest"])
def test_the_page_asks_for_nothing_outside_itself(report: Report) -> None:
    text = render(report)
    found = Page(text)
    assert all(source.startswith("data:") for source in [*found.values("src"), *found.values("href")])
    assert found.values("style") == []  # the policy would block them
    assert "url(" not in text
    assert "@import" not in text


def test_the_policy_lets_the_own_style_in_and_nothing_else() -> None:
    styles = re.findall(r"<style>(.*?)</style>", render(FULL), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert (len(styles), f"style-src 'sha256-{digest}'" in content_security_policy()) == (1, True)
    assert "default-src 'none'" in content_security_policy()


def test_a_deep_model_stays_readable() -> None:
    deep = full_report(layers=300)
    assert deep.receipt is not None
    drawn = charts.layer_chart(deep.receipt.layers)
    assert drawn.count('class="name layer"') == MOST_LAYERS
    assert "270 more, together" in drawn


def test_layers_are_coloured_by_what_ran() -> None:
    assert FULL.receipt is not None
    drawn = charts.layer_chart(FULL.receipt.layers)
    counts = [drawn.count(f'class="bar {kind}"') for kind in ("int8", "bfloat16", "float32")]
    assert counts == [20, 1, 23]  # 22 layers in float32, of which the variant left one in it and one in bfloat16


def test_a_layer_that_fell_back_is_marked() -> None:
    assert FULL.receipt is not None
    first = FULL.receipt.layers[0]
    assert first.float32 is not None
    fallen = replace(first, quantized=True, variant=first.float32)
    assert 'class="name layer fell-back"' in charts.layer_chart([fallen])


def test_the_front_marks_the_chosen_trial_and_those_beyond_the_drawing() -> None:
    assert FULL.search is not None
    drawn = charts.front_chart(FULL.search)
    assert drawn.count('class="ring"') == 1
    assert drawn.count('class="point front"') == 3
    assert drawn.count('class="point trial outside"') == 2  # one far too slow, one that lost far too much


def test_a_search_of_failures_alone_draws_no_front() -> None:
    assert FULL.search is not None
    failures = tuple(trial for trial in FULL.search.trials if trial.failure)
    assert charts.front_chart(replace(FULL.search, trials=failures)) == ""


@pytest.mark.parametrize(("low", "high", "kind"), [(0.0, 0.004, "good"), (0.006, 0.009, "bad"), (0.0, 0.009, "open")])
def test_the_colour_of_a_drop_tells_where_its_interval_lies(low: float, high: float, kind: str) -> None:
    drawn = charts.drop_chart("top1", Interval(value=(low + high) / 2, low=low, high=high), budget=0.005)
    assert f'class="dot {kind}"' in drawn
    assert "budget 0.50" in drawn


def test_the_worst_class_is_first_and_marked() -> None:
    after = {"a": 0.8, "b": 0.5, "same": 0.9}
    classes = [ClassAccuracy(name=name, rows=10, float32=0.9, variant=value) for name, value in after.items()]
    drawn = charts.class_chart(classes)
    assert drawn.index(">b<") < drawn.index(">a<")
    assert ">same<" not in drawn
    assert 'class="name class worst"' in drawn


def test_what_did_not_change_is_said_in_words() -> None:
    assert FULL.accuracy is not None
    same = tuple(replace(one, variant=one.float32) for one in FULL.accuracy.classes)
    steady = replace(FULL.accuracy, classes=same, flips=Flips(gained=(), lost=(), moved=()))
    text = read(replace(FULL, accuracy=steady, gallery=())).text
    assert "None of the 10 classes changed." in text
    assert "None: every row is as right or as wrong as in float32." in text


def test_a_distance_from_float32_has_no_drop() -> None:
    assert evidence.value_cell(replace(FULL.metrics[0], name="sqnr"), "float32") == "-"
    assert [evidence.comparable(metric) for metric in ("top1", "cosine", "sqnr", "kl")] == [True, True, False, False]


def test_a_histogram_draws_a_bar_for_every_bin_that_holds_something() -> None:
    drawn = charts.histogram_chart(
        Histogram(layer="l", kind="weight", low=-1, high=1, before=(1, 4, 1), after=(0, 6, 0))
    )
    assert drawn.count('class="after"') == 1
    assert drawn.count('class="zero"') == 1


def test_a_latency_without_quantiles_is_drawn_from_its_percentiles() -> None:
    plain = {form: replace(one, quantiles_ms=()) for form, one in FULL.latency.items()}
    assert charts.latency_chart(plain).count('class="median') == 3


def test_charts_of_nothing_are_empty() -> None:
    assert (charts.layer_chart([]), charts.class_chart([]), charts.latency_chart({}), charts.memory_chart({})) == (
        "",
        "",
        "",
        "",
    )


def test_bars_begin_at_zero() -> None:
    assert axis_over([3.0, 4.1], label="ms", zero=True).low == 0


@pytest.mark.parametrize("values", [[0.0], [5.0], [-2.0], [1e-7, 2e-7], [3e9, 9e9], [0.81, 0.8100001], [float("nan")]])
@pytest.mark.parametrize("zero", [True, False])
def test_an_axis_holds_its_values_between_round_ticks(values: list[float], zero: bool) -> None:  # noqa: FBT001
    axis = axis_over(values, label="", zero=zero)
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 12
    assert all(axis.low <= value <= axis.high for value in values if isfinite(value))


def test_a_value_outside_its_axis_lies_at_the_edge() -> None:
    axis = Axis(low=0, high=10, ticks=(0, 10))
    assert [axis.at(value) for value in (-5, 2.5, 50)] == ["0%", "25%", "100%"]


def test_an_element_escapes_what_it_is_given() -> None:
    assert element("text", "<b>", title='"') == '<text title="&#34;">&lt;b&gt;</text>'


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (123.4, "123"), (12345, "12,345"), (1e-6, "1e-06")],
)
def test_numbers_have_three_figures(value: float, text: str) -> None:
    assert wording.digits(value) == text


@pytest.mark.parametrize(
    ("metric", "drop", "text"),
    [("top1", 0.0034, "0.34 points worse"), ("top1", -0.001, "0.10 points better"), ("psnr", 0.5, "0.50 dB worse")],
)
def test_a_drop_says_its_direction(metric: str, drop: float, text: str) -> None:
    assert wording.worse(metric, drop).replace(wording.SPACE, " ") == text


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (PtqStatic(), "nncf ptq_static"),
        (PtqStatic(toolchain="ort"), "ort ptq_static"),
        (PtqStatic(observer="percentile"), "nncf ptq_static, percentile observer, 99.99 %"),
        (PtqStatic(float_layers=("a", "b")), "nncf ptq_static, 2 in float"),
        (WeightOnly(bits=4, group_size=64, awq=True), "nncf weight_only, 4 bits, groups of 64, AWQ"),
        (Cast(), "cast, bfloat16"),
        (Auto(), "auto"),
        (Qat(), "nncf qat"),
        (Qat(optimizer="sgd"), "nncf qat, SGD"),
        (Qat(steps=200, weight_bits=4, activation_bits=4), "nncf qat, 4-bit weights, 4-bit activations, 200 steps"),
        (
            Qat(epochs=1, patience=2, gradient_clip=None),
            "nncf qat, 1 epoch, gradients not clipped, patience of 2 looks",
        ),
        (Qat(processes=2, compression="int8", held_out=0.2), "nncf qat, 20 % held out, 2 processes, int8 gradients"),
    ],
)
def test_a_recipe_is_summed_up(recipe: Recipe, text: str) -> None:
    assert summary(recipe) == text


def test_the_documented_schema_is_the_record_s() -> None:
    assert (DOCS / "report.schema.json").read_text() == page(), "python -m app.report_schema > docs/report.schema.json"


@pytest.mark.parametrize("report", [FULL, oldest(), trained_report()], ids=["full", "oldest", "trained"])
def test_a_report_validates_against_the_schema(report: Report) -> None:
    validator = jsonschema.Draft202012Validator(report_schema())
    validator.check_schema(report_schema())
    assert [error.message for error in validator.iter_errors(to_jsonable_python(report))] == []


def test_a_report_that_lacks_a_field_does_not_validate() -> None:
    short = {name: value for name, value in to_jsonable_python(FULL).items() if name != "size"}
    assert not jsonschema.Draft202012Validator(report_schema()).is_valid(short)


def test_every_field_of_a_report_is_explained() -> None:
    explained = (DOCS / "report.md").read_text()
    schema = json.loads(page())
    fields = {name for kind in ("Report", *_evidence_kinds(schema)) for name in _properties(schema, kind)}
    assert sorted(name for name in fields if f"`{name}`" not in explained) == []
    assert FULL.variant == VARIANT


def _evidence_kinds(schema: dict[str, Any]) -> list[str]:
    recipes = {"PtqStatic", "PtqDynamic", "WeightOnly", "Cast", "Qat", "Auto"}
    return [kind for kind in schema["$defs"] if kind not in recipes]


def _properties(schema: dict[str, Any], kind: str) -> list[str]:
    return list((schema if kind == "Report" else schema["$defs"][kind])["properties"])
