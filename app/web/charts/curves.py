"""Curves of training against its steps: the losses on one scale, agreement and learning rate each on its own."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from app.domain.training import TrainingOutcome, TrainingPoint
from app.web import wording
from app.web.svg import Axis, anchor, axis_over, element, tick_text, titled

_TALL, _LOW = 220, 120
_BELOW = 40  # for the ticks' texts and the label
_ACROSS = 1000  # units of a line's own, whatever the drawing's width
_FEW = 60  # looks that are few enough for a dot each
_USUAL = 0.98  # share of the losses that the scale must hold: a loss that runs away would flatten the others

Values = tuple[tuple[int, float], ...]
"""What a curve goes through: steps, ascending, and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plane:
    """The place of a step and of a value."""

    across: Axis
    up: Axis
    height: int

    def x(self, step: float) -> str:
        return self.across.at(step)

    def y(self, value: float) -> float:
        return self.height * (1 - self.up.share(value))


def loss_chart(outcome: TrainingOutcome, *, kind: str) -> Markup:
    """Draw the loss of the training rows and of those held out, and which step was the best.

    Args:
        kind: what the loss is, with its unit.
    """
    losses, scores = _known(outcome.points, "loss"), _known(outcome.points, "score")
    if not scores and not losses:
        return Markup("")
    held = sorted(value for _, value in (*losses, *scores))[: math.ceil(_USUAL * (len(losses) + len(scores)))]
    plane = _plane(outcome, axis_over(held, label=f"{kind}: lower is better", write=_short, zero=True), height=_TALL)
    curves = [_line(losses, plane, kind="training-loss"), _line(scores, plane, kind="held-out-loss")]
    dots = _dots(scores, plane, kind="held-out-loss", told=lambda value: f"held-out loss {wording.digits(value)}")
    return _drawn(plane, [*_resumed(outcome, plane), *curves, *dots, *_best(outcome, scores, plane)])


def agreement_chart(outcome: TrainingOutcome) -> Markup:
    """Draw the share of the held-out rows that are answered like the teacher, or the labels."""
    shares = tuple((step, 100 * share) for step, share in _known(outcome.points, "agreement"))
    if not shares:
        return Markup("")
    values = [share for _, share in shares]
    up = axis_over([*values, min(values) - 1], label="agreement on the held-out rows, %", ticks=3)
    plane = _plane(outcome, up, height=_LOW)
    dots = _dots(shares, plane, kind="agreement", told=lambda share: f"agreement {share:.2f} %")
    return _drawn(plane, [*_resumed(outcome, plane), _line(shares, plane, kind="agreement"), *dots])


def rate_chart(outcome: TrainingOutcome) -> Markup:
    """Draw the learning rate."""
    rates = tuple((point.step, point.learning_rate) for point in outcome.points)
    if not rates:
        return Markup("")
    up = axis_over([rate for _, rate in rates], label="learning rate", write=_short, zero=True, ticks=3)
    plane = _plane(outcome, up, height=_LOW)
    return _drawn(plane, [*_resumed(outcome, plane), _line(rates, plane, kind="rate")])


def _short(value: float) -> str:
    return f"{value:g}"


def _known(points: Sequence[TrainingPoint], field: str) -> Values:
    found = ((point.step, getattr(point, field)) for point in points)
    return tuple((step, value) for step, value in found if value is not None and math.isfinite(value))


def _plane(outcome: TrainingOutcome, up: Axis, *, height: int) -> _Plane:
    across = axis_over([0.0, float(outcome.steps_done)], label="step", write=lambda step: f"{step:,g}", zero=True)
    return _Plane(across=across, up=up, height=height)


def _drawn(plane: _Plane, marks: Sequence[Markup]) -> Markup:
    across, up, height = plane.across, plane.up, plane.height + _BELOW
    texts = [
        element("text", up.write(tick), x="100%", y=plane.y(tick) + 4, text_anchor="end", class_="tick")
        for tick in up.ticks
    ]
    ticks = [tick_text(across, tick, y=plane.height + 16) for tick in across.ticks]
    name = element("text", across.label, x="50%", y=plane.height + 34, text_anchor="middle", class_="label")
    scale = element("svg", *texts, class_="scale", height=height)
    plot = element("svg", *_grid(plane), *marks, *ticks, name, class_="scatter", height=height)
    return element("div", element("div", up.label, class_="scale-label"), scale, plot, class_="pareto curves")


def _grid(plane: _Plane) -> Iterator[Markup]:
    for tick in plane.across.ticks:
        x = plane.x(tick)
        yield element("line", x1=x, x2=x, y1=0, y2=plane.height, class_="grid")
    for tick in plane.up.ticks:
        y = plane.y(tick)
        yield element("line", x1="0%", x2="100%", y1=y, y2=y, class_="zero" if tick == 0 else "grid")


def _line(values: Values, plane: _Plane, *, kind: str) -> Markup:
    """Draw one line in units of its own that are stretched to the plane's width."""
    points = " ".join(f"{_ACROSS * plane.across.share(step):.1f},{plane.y(value):.1f}" for step, value in values)
    line = element("polyline", points=points, class_=f"curve {kind}")
    box = f"0 0 {_ACROSS} {plane.height}"
    return element("svg", line, viewBox=box, preserveAspectRatio="none", width="100%", height=plane.height)


def _dots(values: Values, plane: _Plane, *, kind: str, told: Callable[[float], str]) -> Iterator[Markup]:
    if len(values) <= _FEW:
        for step, value in values:
            dot = element("circle", cx=plane.x(step), cy=plane.y(value), r=3.5, class_=f"look {kind}")
            yield titled(dot, f"step {step:,}: {told(value)}")


def _resumed(outcome: TrainingOutcome, plane: _Plane) -> Iterator[Markup]:
    for step in outcome.resumed_at:
        x = plane.x(step)
        line = element("line", x1=x, x2=x, y1=0, y2=plane.height, class_="resumed")
        yield titled(line, f"resumed at step {step:,}, from a checkpoint")


def _best(outcome: TrainingOutcome, scores: Values, plane: _Plane) -> Iterator[Markup]:
    """Ring the step that the artifact has, with its name above."""
    for step, value in scores:
        if step == outcome.best_step:
            x, y = plane.x(step), plane.y(value)
            yield element("circle", cx=x, cy=y, r=7, class_="ring")
            where = anchor(plane.across, step, near=15)
            yield element("text", f"best: step {step:,}", x=x, y=y - 13, text_anchor=where, class_="chosen-name")
