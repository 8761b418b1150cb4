"""The page's chapter on training: its drawings, and the forms side by side."""

from dataclasses import dataclass

from markupsafe import Markup

from app.domain.recipes import Qat, Single
from app.domain.reports import Report
from app.domain.training import PTQ, TRAINED, Training, TrainingOutcome
from app.domain.training_facts import training_facts
from app.domain.variants import FLOAT32
from app.web import charts, evidence, wording

_LOSSES = {
    "distillation": "squared error, share of the energy of the teacher's answers",
    "feature_distillation": "squared error, share of the energy of the teacher's features",
    "cross_entropy": "cross-entropy, nats",
    "mse": "mean squared error, in the labels' unit squared",
}
_FORMS = {
    FLOAT32: "the original",
    PTQ: "the start: quantized, not trained",
    TRAINED: "trained, not published",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """What the page shows of a training.

    Attributes:
        headings, lines: of the table of forms; `headings` are the metrics'.
    """

    headings: tuple[str, ...]
    lines: tuple[tuple[str, str, tuple[str, ...]], ...]
    facts: tuple[tuple[str, str], ...]
    losses: Markup
    agreement: Markup
    rate: Markup
    resumed: bool


def chapter(report: Report) -> Chapter | None:
    """Return the chapter; None where nothing was trained."""
    training = report.training
    if training is None:
        return None
    outcome = training.outcome
    return Chapter(
        headings=_headings(report),
        lines=tuple((form, _what(form, training), _cells(report, form)) for form in _forms(report)),
        facts=tuple(training_facts(training, report.recipe)),
        losses=charts.loss_chart(outcome, kind=_loss(report.recipe, outcome)),
        agreement=charts.agreement_chart(outcome),
        rate=charts.rate_chart(outcome),
        resumed=bool(outcome.resumed_at),
    )


def _loss(recipe: Single | None, outcome: TrainingOutcome) -> str:
    if not isinstance(recipe, Qat):
        return "loss"
    classes = any(point.agreement is not None for point in outcome.points)
    if recipe.loss == "distillation" and classes:
        return f"KL divergence from the teacher at temperature {recipe.temperature:g}, times its square, nats"
    return _LOSSES[recipe.loss]


def _forms(report: Report) -> list[str]:
    measured = {form for metric in report.metrics for form in metric.measured} | set(report.fidelity)
    return [FLOAT32, *(form for form in (PTQ, TRAINED) if form in measured), report.variant]


def _what(form: str, training: Training) -> str:
    published = "trained" if training.returned == "trained" else "the start, published"
    return _FORMS.get(form, published)


def _headings(report: Report) -> tuple[str, ...]:
    agreement = ["agreement with float32"] if any(one.agreement for one in report.fidelity.values()) else []
    known = [wording.title_of(score.name) for score in report.metrics if score.name != "agreement"]
    return (*known, *agreement)


def _cells(report: Report, form: str) -> tuple[str, ...]:
    known = tuple(evidence.value_cell(score, form) for score in report.metrics if score.name != "agreement")
    if not any(one.agreement for one in report.fidelity.values()):
        return known
    share = report.fidelity[form].agreement if form in report.fidelity else None
    return (*known, "-" if share is None else wording.share(share.value, places=2))
