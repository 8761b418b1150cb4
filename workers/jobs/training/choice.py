"""Whether what was trained is published, or what it began from: never what is worse. Pure rules."""

from dataclasses import dataclass

from app.domain.errors import JobFailure
from app.domain.evidence import MetricScore
from app.domain.metrics import METRICS
from app.domain.recipes import Qat
from app.domain.training import PTQ, Returned, TrainingOutcome
from app.domain.verdicts import default_metric
from workers.stages import ScoreResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is published, and why, one sentence."""

    returned: Returned
    why: str


def choose(score: ScoreResult, outcome: TrainingOutcome, recipe: Qat, *, variant: str) -> Choice:
    """Compare what was trained with its start, on the same evaluation rows.

    The start is published where no step was better on the held-out rows, where the trained one is worse in what it was
    trained for, or where it answers surely fewer rows right: the whole 95 % interval of the paired difference of top-1
    (Newcombe 1998, method 10) lies below zero. What it was trained for is agreement with float32 where float32 taught
    it, and the first metric that the labels allow elsewhere.
    """
    if outcome.best_step == 0:
        return Choice(returned="start", why="No step was better than the start on the held-out rows.")
    ahead = score.ahead.get(PTQ)
    if ahead is not None and ahead.high < 0:
        return Choice(
            returned="start",
            why=f"The trained artifact answers {-ahead.value:.2%} fewer evaluation rows right than the start "
            f"({-ahead.high:.2%} to {-ahead.low:.2%}), so the start was published.",
        )
    metric = _metric(score, recipe)
    if metric is None:
        return Choice(returned="trained", why="No metric fits the outputs: the held-out rows alone chose.")
    trained, start = metric.measured[variant].value, metric.measured[PTQ].value
    worse = trained < start if METRICS[metric.name].better == "higher" else trained > start
    told = (
        f"{metric.name} is {_shown(trained, metric)} for the trained artifact and {_shown(start, metric)} for the start"
    )
    published = "start" if worse else "trained artifact"
    return Choice(
        returned="start" if worse else "trained",
        why=f"On {metric.rows:,} evaluation rows {told}, so the {published} was published.",
    )


def unmeasured(failure: JobFailure) -> Choice:
    """Return the choice where the trained artifact does not run."""
    return Choice(returned="start", why=f"The start was published, for the trained artifact fails: {failure.message}")


def _metric(score: ScoreResult, recipe: Qat) -> MetricScore | None:
    by_name = {each.name: each for each in score.metrics}
    if recipe.distils and recipe.teacher is None:
        return by_name.get("agreement") or by_name.get("cosine")
    return default_metric(score.metrics)


def _shown(value: float, metric: MetricScore) -> str:
    unit = METRICS[metric.name].unit
    return f"{value:.2%}" if unit == "share" else f"{value:.4g} {'' if unit in ('value', 'cosine') else unit}".rstrip()
