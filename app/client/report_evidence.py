"""A report's evidence for the terminal: verdict, metrics, search, findings, diagnosis. Absent parts say nothing."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.domain.evidence import Interval, MetricScore
from app.domain.metrics import METRICS
from app.domain.reports import Report
from app.domain.search import Search
from app.domain.training import PTQ, TRAINED
from app.domain.variants import FLOAT32

NOT_MEASURED = "-"
_STYLES = {"kept": "bold green", "missed": "bold red", "not enough rows": "bold yellow"}


def verdict_line(report: Report) -> Text | None:
    """Return whether the budget was kept, and why."""
    if report.verdict is None:
        return None
    verdict = report.verdict
    line = Text.assemble(("Budget ", "bold"), (verdict.outcome, _STYLES[verdict.outcome]), f": {verdict.reason}")
    if verdict.rows_needed is not None:
        line.append(f" About {verdict.rows_needed:,} rows would tell.")
    return line


def metrics_view(report: Report, *, width: int) -> RenderableType | None:
    """Return every metric of float32 and the variant, and the paired drop, each with its 95 % interval."""
    if not report.metrics or report.variant == FLOAT32:
        return None
    between = [form for form in (PTQ, TRAINED) if any(form in metric.measured for metric in report.metrics)]
    forms = (FLOAT32, *between, report.variant)
    lines = [_metric_line(metric, forms) for metric in report.metrics]
    headings = ("metric", *forms, "drop (95 %)", "p")
    needed = sum(max(map(len, column)) + 3 for column in zip(headings, *lines, strict=True)) + 1
    if needed > width:
        return Group(*(Text(_in_words(line, forms)) for line in lines))
    table = Table(header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if number == 0 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def _in_words(line: Sequence[str], forms: Sequence[str]) -> str:
    name, *values, drop, _ = line
    if len(forms) > 2:  # noqa: PLR2004 - more than before and after want their names
        known = zip(forms, values, strict=True)
        values = [f"{form} {value}" for form, value in known if value != NOT_MEASURED]
        return f"{name}: {', '.join(values)}" + (f"; drop {drop}" if drop != NOT_MEASURED else "")
    return f"{name}: {values[-1]}" if drop == NOT_MEASURED else f"{name}: {' -> '.join(values)}; drop {drop}"


def _metric_line(metric: MetricScore, forms: Sequence[str]) -> tuple[str, ...]:
    def written(form: str) -> str:
        return _with_interval(metric.name, metric.measured[form]) if form in metric.measured else NOT_MEASURED

    others = [written(form) for form in forms[1:]]
    if metric.name in METRICS and not METRICS[metric.name].budget:  # a distance from float32, which it has none of
        return metric.name, NOT_MEASURED, *others, NOT_MEASURED, NOT_MEASURED
    p_value = NOT_MEASURED if metric.p_value is None else f"{metric.p_value:.3f}"
    return metric.name, written(FLOAT32), *others, drop_words(metric.name, metric.drop), p_value


def drop_words(metric: str, drop: Interval) -> str:
    """Write a drop with its interval; positive is worse."""
    factor, unit, places = _shown(metric, of_drop=True)
    # rounded first, and 0 added, so that no zero has a minus
    value, low, high = (f"{round(factor * end, places) + 0.0:+.{places}f}" for end in (drop.value, drop.low, drop.high))
    return f"{value}{unit} ({low} to {high})"


def _with_interval(metric: str, interval: Interval) -> str:
    factor, unit, places = _shown(metric, of_drop=False)
    value, low, high = (f"{factor * end:.{places}f}" for end in (interval.value, interval.low, interval.high))
    return f"{value}{unit} ({low} to {high})"


def _shown(metric: str, *, of_drop: bool) -> tuple[float, str, int]:
    """Return factor, unit and places of a metric's shown value."""
    unit = METRICS[metric].unit if metric in METRICS else ""
    if unit == "share":
        return 100.0, " points" if of_drop else " %", 2
    return 1.0, f" {unit}" if unit in ("dB", "nats") else "", 2 if unit == "dB" else 5


def search_sentences(search: Search) -> Iterator[str]:
    """Say what was searched, what was chosen and why."""
    failed = sum(trial.failure is not None for trial in search.trials)
    without = f", {failed} of them without success" if failed else ""
    early = "" if search.ended == "complete" else f"; it ended early: {search.ended}"
    yield f"Search: {len(search.trials)} trials{without}, {len(search.front)} on the Pareto front{early}."
    yield f"Chosen on {search.selection.rows:,} rows that did not score: {search.reason}"


def finding_lines(report: Report) -> list[Text]:
    """Return what the checks found, warnings first."""
    found = sorted(report.findings, key=lambda finding: finding.severity != "warning")
    styles = {"warning": "yellow", "note": "dim"}
    return [Text.assemble((f"{one.severity}: ", styles[one.severity]), one.message) for one in found]


def diagnosis_lines(report: Report) -> Iterator[Text]:
    """Yield the questions with their answers, and what to try next."""
    for one in report.diagnosis:
        yield Text(one.question, style="bold")
        yield from (Text(f"  {sentence}") for sentence in one.answer)
        yield from (Text(f"  Next: {sentence}", style="cyan") for sentence in one.next)
