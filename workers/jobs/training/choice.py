"""Whether what was trained is published, or what it began from: never what is worse. Pure rules."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan

from app.domain.errors import JobFailure
from app.domain.evidence import MetricScore
from app.domain.metrics import METRICS
from app.domain.recipes import Qat
from app.domain.training import PTQ, Returned, TrainingOutcome
from app.domain.verdicts import default_metric
from workers.stage_records.measuring import ScoreResult

_TIES = ("top1", "sqnr", "kl", "cosine")
"""What decides where the first metric is the same: right answers where there are labels, then closeness to float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is published, and why, one sentence."""

    returned: Returned
    why: str


def untrained(outcome: TrainingOutcome) -> Choice | None:
    """Return the choice where training led nowhere; None where there is something to compare."""
    if outcome.best_step > 0:
        return None
    return Choice(returned="start", why="No step was better than the start on the held-out rows.")


def choose(score: ScoreResult, recipe: Qat, *, variant: str) -> Choice:
    """Compare what was trained with its start, on the same evaluation rows.

    The start is published where the trained one is not better in what it was trained for, or where it answers surely
    fewer rows right: the whole 95 % interval of the paired difference of top-1 (Newcombe 1998, method 10) lies below
    zero. What it was trained for is agreement with float32 where float32 taught it, and the first metric that the
    labels allow elsewhere. Where that is the same for both, the first of `_TIES` decides that is not. A value that is
    no number is worse than any.
    """
    ahead = score.ahead.get(PTQ)
    if ahead is not None and not ahead.high >= 0:
        return Choice(
            returned="start",
            why=f"The trained artifact answers {-ahead.value:.2%} fewer evaluation rows right than the start "
            f"({-ahead.high:.2%} to {-ahead.low:.2%}), so the start was published.",
        )
    metrics = list(_metrics(score, recipe))
    if not metrics:
        return Choice(returned="trained", why="No metric fits the outputs: the held-out rows alone chose.")
    compared = [(metric, _ahead(metric, variant=variant)) for metric in metrics]
    metric, better = next((each for each in compared if each[1] != 0), compared[0])
    same = "" if metric is metrics[0] else f"{_told(metrics[0], variant=variant)}, and "
    published = "trained artifact" if better > 0 else "start"
    return Choice(
        returned="trained" if better > 0 else "start",
        why=f"On {metric.rows:,} evaluation rows {same}{_told(metric, variant=variant)}, so the {published} was "
        "published.",
    )


def unmeasured(failure: JobFailure) -> Choice:
    """Return the choice where the trained artifact does not run."""
    return Choice(returned="start", why=f"The start was published, for the trained artifact fails: {failure.message}")


def _metrics(score: ScoreResult, recipe: Qat) -> Iterator[MetricScore]:
    """Give the metric that decides, and then those that decide a tie."""
    by_name = {each.name: each for each in score.metrics}
    if recipe.distils and recipe.teacher is None:
        first = by_name.get("agreement") or by_name.get("cosine")
    else:
        first = default_metric(score.metrics)
    if first is not None:
        yield first
    yield from (by_name[name] for name in _TIES if name in by_name and by_name[name] is not first)


def _ahead(metric: MetricScore, *, variant: str) -> int:
    """Return 1 where what was trained is better in a metric, -1 where it is worse, 0 where both are the same."""
    trained, start = metric.measured[variant].value, metric.measured[PTQ].value
    if isnan(trained) or isnan(start):
        return -1 if isnan(trained) else 1
    higher = METRICS[metric.name].better == "higher"
    return (trained > start) - (trained < start) if higher else (trained < start) - (trained > start)


def _told(metric: MetricScore, *, variant: str) -> str:
    trained, start = (_shown(metric.measured[form].value, metric) for form in (variant, PTQ))
    if _ahead(metric, variant=variant) == 0:
        return f"{metric.name} is {trained} for both"
    return f"{metric.name} is {trained} for the trained artifact and {start} for the start"


def _shown(value: float, metric: MetricScore) -> str:
    unit = METRICS[metric.name].unit
    return f"{value:.2%}" if unit == "share" else f"{value:.4g} {'' if unit in ('value', 'cosine') else unit}".rstrip()
