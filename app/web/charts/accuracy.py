"""Charts of what was lost: the metric of every form, the drop beside the budget, the change of every class."""

from collections.abc import Sequence

from markupsafe import Markup

from app.domain.evidence import ClassScore, Interval, MetricScore
from app.domain.reports import ClassAccuracy
from app.web import wording
from app.web.charts.marks import bar, form_kind, whisker
from app.web.svg import Guide, Row, axis_over, rows_chart

MOST_CLASSES = 30

OneClass = ClassAccuracy | ClassScore


def interval_chart(score: MetricScore) -> Markup:
    """Draw a metric of every form with its 95 % interval."""
    factor = wording.scale(score.name)
    ends = [end * factor for form in score.measured.values() for end in (form.low, form.high)]
    label = f"{wording.title_of(score.name)}, {wording.unit(score.name)}".rstrip(", ")
    axis = axis_over(ends, label=f"{label} (95 % interval)")
    rows = [
        Row(
            name=form,
            marks=whisker(
                value, axis, kind=form_kind(form), factor=factor, title=f"{form}: {_interval(score.name, value)}"
            ),
            value=wording.measured(score.name, value.value),
            kind=form_kind(form),
        )
        for form, value in score.measured.items()
    ]
    return rows_chart(rows, axis)


def _interval(metric: str, value: Interval) -> str:
    low, high = wording.measured(metric, value.low), wording.measured(metric, value.high)
    return f"{wording.measured(metric, value.value)}, 95 % {low} to {high}"


def drop_chart(metric: str, drop: Interval, *, budget: float | None) -> Markup:
    """Draw the paired drop with its interval, beside no drop at all and beside the budget."""
    factor = wording.scale(metric)
    ends = [drop.low * factor, drop.high * factor, *([] if budget is None else [1.15 * budget * factor])]
    unit = wording.unit(metric, of_drop=True)
    label = f"drop of {wording.title_of(metric)} against float32{f', {unit}' if unit else ''}: right is worse"
    axis = axis_over(ends, label=label, zero=True)
    guides = [Guide(at=0.0, kind="zero")]
    kind = "variant"
    if budget is not None:
        guides.append(Guide(at=budget * factor, kind="budget", text=f"budget {wording.amount(metric, budget)}"))
        kind = "bad" if drop.low > budget else "good" if drop.high <= budget else "open"
    marks = whisker(drop, axis, kind=kind, factor=factor, title=wording.worse_between(metric, drop))
    value = wording.worse(metric, drop.value)
    return rows_chart([Row(name="paired drop", marks=marks, value=value, kind=kind)], axis, guides=guides)


def class_chart(classes: Sequence[OneClass]) -> Markup:
    """Draw the change of every class that changed, in points, the worst first; of many, those that changed most."""
    changed = [one for one in classes if one.variant != one.float32]
    shown = sorted(sorted(changed, key=lambda one: -abs(_change(one)))[:MOST_CLASSES], key=_change)
    axis = axis_over([_change(one) for one in shown], label="change against float32, points", zero=True)
    rows = [
        Row(
            name=one.name,
            marks=bar(0.0, _change(one), axis, y=5, height=14, kind=_kind(one), title=_told(one)),
            value=f"{_change(one):+.1f}",
            kind=f"class {'worst' if number == 0 and _change(one) < 0 else ''}".strip(),
            height=24,
        )
        for number, one in enumerate(shown)
    ]
    return rows_chart(rows, axis, guides=[Guide(at=0.0, kind="zero")])


def _change(one: OneClass) -> float:
    return 100 * (one.variant - one.float32)


def _kind(one: OneClass) -> str:
    return "loss" if one.variant < one.float32 else "gain"


def _told(one: OneClass) -> str:
    return f"{one.name}: {wording.share(one.float32)} in float32, {wording.share(one.variant)} now, {one.rows} rows"
