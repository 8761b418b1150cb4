"""report.html: a report as one self-contained page. It loads and runs nothing, and trusts no word of the report."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from app.domain.evidence import FlippedImage, Histogram, MetricScore
from app.domain.reports import Report
from app.domain.variants import FLOAT32
from app.web import charts, evidence, training, wording
from app.web.charts.accuracy import MOST_CLASSES
from app.web.charts.layers import MOST_LAYERS

MEDIA_TYPE = "text/html; charset=utf-8"
_MOST_HISTOGRAMS = 48


def content_security_policy() -> str:
    """Return the header's value: nothing but the page's own style and the pictures that it holds itself."""
    return f"{_policy()}; frame-ancestors 'none'; sandbox"


@cache
def _policy() -> str:
    """Return what the page says of itself too, for when it is a file; the rest only a header may say."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def render(report: Report) -> str:
    """Return the page."""
    return _template().render(
        report=report,
        name=f"{report.model}:{report.version}@{report.variant}",
        style=Markup(_style()),  # noqa: S704 - a file of ours
        policy=_policy(),
        quantized=report.variant != FLOAT32,
        headline=evidence.headline(report),
        facts=evidence.facts(report),
        main=evidence.main_score(report),
        scores=evidence.scores(report),
        evidence=evidence,
        wording=wording,
        charts=_charts(report),
        training=training.chapter(report),
        histograms=_histograms(report.histograms),
        warnings=[finding for finding in report.findings if finding.severity == "warning"],
        flips=_flips(report.gallery),
        most_layers=MOST_LAYERS,
        most_classes=MOST_CLASSES,
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("app.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _template() -> Template:
    return _environment().get_template("report.html")


@cache
def _style() -> str:
    return _environment().get_template("report.css").render()


def _charts(report: Report) -> dict[str, str]:
    """Draw what the report has; what it lacks is empty."""
    score = evidence.main_score(report)
    return {
        "score": charts.interval_chart(score) if score else "",
        "drop": _drop(report, score),
        "front": charts.front_chart(report.search) if report.search else "",
        "latency": charts.latency_chart(report.latency),
        "size": charts.size_chart(report.size, report.variant),
        "memory": charts.memory_chart(report.memory),
        "layers": charts.layer_chart(report.receipt.layers) if report.receipt else "",
        "sensitivity": _sensitivity(report),
        "classes": charts.class_chart(evidence.classes(report)),
    }


def _drop(report: Report, score: MetricScore | None) -> str:
    if score is None or report.variant == FLOAT32:
        return ""
    if report.verdict is None:
        return charts.drop_chart(score.name, score.drop, budget=None)
    budget = report.verdict.budget
    return charts.drop_chart(budget.metric or score.name, report.verdict.drop, budget=budget.max_drop)


def _sensitivity(report: Report) -> str:
    layers = report.sensitivity or (report.search.sensitivity if report.search else ())
    return charts.sensitivity_chart(layers, metric=report.search.metric if report.search else None)


def _histograms(histograms: Sequence[Histogram]) -> dict[str, list[tuple[Histogram, Markup]]]:
    kinds: dict[str, list[tuple[Histogram, Markup]]] = {}
    for histogram in histograms[:_MOST_HISTOGRAMS]:
        kinds.setdefault(histogram.kind, []).append((histogram, charts.histogram_chart(histogram)))
    return kinds


def _flips(gallery: Sequence[FlippedImage]) -> list[tuple[FlippedImage, str]]:
    """Say of each picture which way its answer went."""
    return [(flip, _way(flip)) for flip in gallery]


def _way(flip: FlippedImage) -> str:
    if flip.label is None:
        return "changed"
    return "lost" if flip.label == flip.float32 else "gained" if flip.label == flip.variant else "moved"
