"""A report's facts in the shapes its page wants, older reports' included."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.diagnosis import main_metric
from app.domain.evidence import ClassScore, Interval, MetricScore
from app.domain.metrics import METRICS
from app.domain.recipes.summary import summary
from app.domain.reports import Accuracy, ClassAccuracy, Flips, Report
from app.domain.search import Search, Trial
from app.domain.variants import FLOAT32
from app.web import wording

_FIDELITY = ("agreement", "sqnr", "cosine", "kl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A number that stands out on the page.

    Attributes:
        small: half a sentence below it.
    """

    name: str
    value: str
    small: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLine:
    """One trial as a line of a table."""

    number: int
    recipe: str
    standing: str
    speedup: str
    drop: str
    size: str
    memory: str
    seconds: str
    failure: str | None


def scores(report: Report) -> tuple[MetricScore, ...]:
    """Return the metrics; of a report of the first schema, those that its accuracy and fidelity tell."""
    if report.metrics or report.accuracy is None:
        return report.metrics
    return (_score_of(report.accuracy, report.variant),)


def _score_of(accuracy: Accuracy, variant: str) -> MetricScore:
    difference = accuracy.difference
    measured = {form: Interval(value=one.value, low=one.low, high=one.high) for form, one in accuracy.measured.items()}
    shown = accuracy.measured.get(variant)
    return MetricScore(
        name=accuracy.metric,
        rows=shown.rows if shown else 0,
        measured=measured,
        drop=Interval(value=-difference.value, low=-difference.high, high=-difference.low),
        p_value=None,
        method=difference.method,
    )


def main_score(report: Report) -> MetricScore | None:
    """Return the metric that the page begins with: the budget's where there is one."""
    wanted = report.verdict.budget.metric if report.verdict else None
    known = scores(report)
    return next((score for score in known if score.name == wanted), main_metric(report) or next(iter(known), None))


def classes(report: Report) -> tuple[ClassAccuracy | ClassScore, ...]:
    """Return every class before and after: of the page's metric where that is a mean over classes, else of accuracy."""
    score = main_score(report)
    if score is not None and score.classes:
        return score.classes
    return report.accuracy.classes if report.accuracy else ()


def classes_sentence(found: Sequence[ClassAccuracy | ClassScore], *, most: int) -> str:
    """Say how many classes changed, and how many of them are drawn."""
    changed = sum(one.variant != one.float32 for one in found)
    if not changed:
        return f"None of the {len(found)} classes changed."
    drawn = f"; the {most} that changed most are drawn" if changed > most else ""
    return f"{changed} of {len(found)} classes changed{drawn}, each on its own rows, the worst first."


def flips_sentence(flips: Flips) -> str:
    """Say how many rows changed, both ways."""
    lost, gained, moved = len(flips.lost), len(flips.gained), len(flips.moved)
    if not lost + gained + moved:
        return "None: every row is as right or as wrong as in float32."
    return f"{lost} lost (right in float32, wrong now), {gained} gained, {moved} wrong in another way."


def comparable(metric: str) -> bool:
    """Whether float32 has a value of its own: it has no distance from itself."""
    return metric not in METRICS or METRICS[metric].budget


def value_cell(score: MetricScore, form: str) -> str:
    """Return a form's value as a table shows it."""
    if form not in score.measured or (form == FLOAT32 and not comparable(score.name)):
        return "-"
    return wording.measured(score.name, score.measured[form].value)


def meaning(metric: str) -> str:
    """Return half a sentence about a metric."""
    return METRICS[metric].meaning if metric in METRICS else metric


def fidelity_lines(report: Report) -> list[tuple[str, str, str, str, str]]:
    """Return agreement, SQNR, cosine and KL of each form, where the metrics do not tell them."""
    if any(score.name in _FIDELITY for score in report.metrics):
        return []
    return [
        (
            form,
            wording.share(one.agreement.value, places=2) if one.agreement else "-",
            f"{one.sqnr_db:.1f} dB" if one.sqnr_db is not None else "-",
            f"{one.cosine:.5f}",
            "-" if one.kl is None else wording.digits(one.kl),
        )
        for form, one in report.fidelity.items()
    ]


def headline(report: Report) -> str:
    """Return the report in a sentence."""
    if report.variant == FLOAT32:
        return _float32_headline(report)
    parts = [part for part in (wording.speed(report), _smaller(report), _dropped(report)) if part]
    sentence = ", ".join(parts) + "."
    return sentence[:1].upper() + sentence[1:]


def _smaller(report: Report) -> str:
    return f"{wording.share(report.size.ratio, places=0)} of its size"


def _dropped(report: Report) -> str | None:
    score = main_score(report)
    if score is None:
        return None
    how = wording.worse(score.name, score.drop.value)
    return f"{wording.title_of(score.name)} {how} ({wording.worse_between(score.name, score.drop)})"


def _float32_headline(report: Report) -> str:
    latency, check = report.latency.get(FLOAT32), report.conversion
    facts = [f"The reference: {wording.size(report.size.bytes)}"]
    if latency is not None:
        facts.append(f"{wording.milliseconds(latency.p50_ms)} per row")
    if check is not None:
        facts.append(f"within {wording.digits(check.max_error, figures=2)} of {check.original}'s answers")
    return ", ".join(facts) + "."


def facts(report: Report) -> list[Fact]:
    """Return the few numbers a reader looks for first."""
    found: list[Fact] = []
    latency, memory = report.latency.get(report.variant), report.memory.get(report.variant)
    quantized = report.variant != FLOAT32
    if latency is not None:
        small = f"{wording.milliseconds(latency.p50_ms)} per row, {wording.digits(latency.rows_per_second)} rows/s"
        value = wording.times(latency.speedup) if quantized else wording.milliseconds(latency.p50_ms)
        found.append(Fact(name="speed" if quantized else "time of one row", value=value, small=small))
    ratio = wording.share(report.size.ratio, places=0) if quantized else wording.size(report.size.bytes)
    small = (
        f"{wording.size(report.size.bytes)} of {wording.size(report.size.float32_bytes)}" if quantized else "on disk"
    )
    found.append(Fact(name="size", value=ratio, small=small))
    found += _score_facts(report)
    if memory is not None:
        small = f"added by loading it; peak {wording.size(memory.peak_bytes)}"
        found.append(Fact(name="memory", value=wording.size(memory.added_bytes), small=small))
    return found


def _score_facts(report: Report) -> list[Fact]:
    score = main_score(report)
    if score is None or report.variant == FLOAT32:
        return []
    value = score.measured.get(report.variant)
    found = [
        Fact(
            name=f"drop of {wording.title_of(score.name)}",
            value=wording.amount(score.name, score.drop.value)
            if score.drop.value >= 0
            else f"+{wording.amount(score.name, score.drop.value)}",
            small=f"{'better; ' if score.drop.value < 0 else ''}{wording.worse_between(score.name, score.drop)}",
        )
    ]
    if value is not None:
        small = (
            f"on {score.rows:,} rows; float32 {wording.measured(score.name, score.measured[FLOAT32].value)}"
            if FLOAT32 in score.measured
            else f"on {score.rows:,} rows"
        )
        found.insert(
            0, Fact(name=wording.title_of(score.name), value=wording.measured(score.name, value.value), small=small)
        )
    return found


def trial_lines(search: Search) -> list[TrialLine]:
    """Return the trials of a search, in the order they ran."""
    return [_trial_line(number, trial, search) for number, trial in enumerate(search.trials, start=1)]


def _trial_line(number: int, trial: Trial, search: Search) -> TrialLine:
    standing = "chosen" if trial.key == search.chosen else "front" if trial.key in search.front else ""
    return TrialLine(
        number=number,
        recipe=summary(trial.recipe),
        standing="failed" if trial.failure else standing,
        speedup="-" if trial.speedup is None else wording.times(trial.speedup),
        drop="-" if trial.drop is None else wording.worse(search.metric, trial.drop.value),
        size="-" if trial.size_bytes is None else wording.size(trial.size_bytes),
        memory="-" if trial.memory_bytes is None else wording.size(trial.memory_bytes),
        seconds=wording.seconds(trial.seconds),
        failure=trial.failure,
    )


def forecast_lines(search: Search) -> list[tuple[str, str, str]]:
    """Return what was foreseen beside what happened."""
    forecast = search.forecast
    memory, took = forecast.actual_memory_bytes, forecast.actual_seconds
    return [
        ("rows", f"{forecast.rows:,}", ""),
        ("memory", wording.size(forecast.memory_bytes), "" if memory is None else wording.size(memory)),
        ("time", wording.seconds(forecast.seconds), "" if took is None else wording.seconds(took)),
    ]


def record_lines(record: object) -> list[tuple[str, str]]:
    """Return a record's fields and values, those of a record inside it behind a point."""
    lines: list[tuple[str, str]] = []
    for name in getattr(record, "__slots__", ()):
        value = getattr(record, name)
        if hasattr(value, "__slots__"):
            lines += [(f"{name}.{inner}", text) for inner, text in record_lines(value)]
        else:
            lines.append((name, ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)))
    return lines
