"""A report as one table for the terminal: a line per form, float32 first; a narrow terminal gets a column per form."""

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from app.client.report_evidence import (
    NOT_MEASURED,
    diagnosis_lines,
    finding_lines,
    metrics_view,
    search_sentences,
    verdict_line,
)
from app.client.report_training import training_view
from app.domain.reports import Proportion, Report
from app.domain.training import PTQ, TRAINED
from app.domain.variants import FLOAT32

HEADINGS = ("variant", "accuracy (95 %)", "agreement", "size", "p50", "speed-up", "memory added")


def report_view(report: Report, *, width: int) -> RenderableType:
    """Return the table, and below it metrics, training, what changed, which kernels ran, findings and diagnosis."""
    table = _wide(report) if _wide_width(report) <= width else _narrow(report)
    parts = (verdict_line(report), table, metrics_view(report, width=width), training_view(report, width=width))
    words = [Text(sentence) for sentence in sentences(report)]
    told = (*words, *finding_lines(report), *diagnosis_lines(report))
    return Group(*(part for part in parts if part is not None), *told)


def sentences(report: Report) -> list[str]:
    """Say in words what the table has no column for."""
    searched = search_sentences(report.search) if report.search else ()
    said = [*searched, _flips(report), _kernels(report), _invariance(report), *report.notes]
    return [sentence for sentence in said if sentence]


def cells(report: Report) -> list[tuple[str, ...]]:
    """Return one line per measured form, in the order of `HEADINGS`."""
    return [_line(report, form) for form in forms(report)]


def forms(report: Report) -> list[str]:
    """Return the forms that were measured: float32 first, the variant last."""
    measured = {*report.latency, *report.memory, *report.fidelity, FLOAT32, report.variant}
    between = sorted(measured - {FLOAT32, report.variant})
    return list(dict.fromkeys([FLOAT32, *between, report.variant]))


def _line(report: Report, form: str) -> tuple[str, ...]:
    accuracy = report.accuracy.measured.get(form) if report.accuracy else None
    fidelity = report.fidelity.get(form)
    latency, memory = report.latency.get(form), report.memory.get(form)
    return (
        form,
        _with_interval(accuracy) if accuracy else NOT_MEASURED,
        _percent(fidelity.agreement.value) if fidelity and fidelity.agreement else NOT_MEASURED,
        _size(report, form),
        f"{latency.p50_ms:.3f} ms" if latency else NOT_MEASURED,
        f"{latency.speedup:.2f} x" if latency else NOT_MEASURED,
        decimal(memory.added_bytes) if memory else NOT_MEASURED,
    )


def _size(report: Report, form: str) -> str:
    if form == report.variant:
        share = f" ({_percent(report.size.ratio, digits=0)})" if form != FLOAT32 else ""
        return decimal(report.size.bytes) + share
    if form in (PTQ, TRAINED):  # artifacts of their own, which nobody keeps
        return NOT_MEASURED
    # other forms run the float32 artifact
    return decimal(report.size.float32_bytes)


def _with_interval(share: Proportion) -> str:
    return f"{_percent(share.value)} ({100 * share.low:.2f} to {100 * share.high:.2f})"


def _percent(share: float, *, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def _flips(report: Report) -> str:
    if report.accuracy is None or report.variant == FLOAT32:
        return ""
    flips, difference = report.accuracy.flips, report.accuracy.difference
    points = f"{100 * difference.value:+.2f} points ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
    rows = report.accuracy.measured[report.variant].rows
    return (
        f"Against float32 on the same {rows} rows: {points}; of the answers "
        f"{len(flips.lost)} lost, {len(flips.gained)} gained, {len(flips.moved)} wrong in another way."
    )


def _kernels(report: Report) -> str:
    kernels = report.kernels.get(report.variant)
    if kernels is None or not kernels.int8_layers:
        return ""
    total = kernels.int8_layers + kernels.float_layers
    share = _percent(kernels.int8_share, digits=0)
    return f"The engine ran {kernels.int8_layers} of {total} layers in int8: {share} of the time."


def _invariance(report: Report) -> str:
    if report.invariance is None or report.invariance.invariant:
        return ""
    return "A row's answer depends on the rows beside it, so the variant answers one row at a time."


def _wide_width(report: Report) -> int:
    widths = [max(map(len, column)) for column in zip(HEADINGS, *cells(report), strict=True)]
    return sum(widths) + 3 * len(widths) + 1  # a space on both sides of each cell, and the lines between


def _wide(report: Report) -> Table:
    table = _empty(report)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for line in cells(report):
        table.add_row(*line, style="bold" if line[0] == report.variant else None)
    return table


def _narrow(report: Report) -> Table:
    table = _empty(report)
    columns = cells(report)
    table.add_column("")
    for column in columns:
        table.add_column(column[0], justify="right", style="bold" if column[0] == report.variant else None)
    for heading, *line in zip(HEADINGS[1:], *(column[1:] for column in columns), strict=True):
        table.add_row(heading, *(cell.replace(" (", "\n(") for cell in line))
    return table


def _empty(report: Report) -> Table:
    title = Text(f"{report.model}:{report.version}@{report.variant}")
    return Table(title=title, title_justify="left", header_style="bold")
