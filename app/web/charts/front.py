"""The Pareto front: every trial of a search by its time and its drop."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from app.domain.recipes.summary import summary
from app.domain.search import Search, Trial
from app.web import wording
from app.web.svg import Axis, axis_over, element, joined, tick_text, titled

_HEIGHT = 320.0
_SMALLEST, _LARGEST = 9.0, 17.0
_SLOWEST = 150.0
"""Percent of float32's time; a slower trial lies beyond the drawing."""

_ROOM_FOR_A_NAME = 0.12
_BEYOND = 2.5
"""A drop of so many budgets lies beyond the drawing, or one bad trial would press the others flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """One measured trial.

    Attributes:
        number: its place among the trials, from 1.
        time: share of float32's time in the same run.
    """

    trial: Trial
    number: int
    time: float
    drop: float
    low: float
    high: float
    kind: str


def front_chart(search: Search) -> Markup:
    """Draw the trials: time across, drop downwards from the worst, area by size, the chosen one marked."""
    points = list(_points(search))
    if not points:
        return Markup("")
    factor = wording.scale(search.metric)
    budget = search.request.budget.max_drop * factor
    near = [point.time for point in points if point.time <= _SLOWEST] or [100.0]
    across = axis_over(near, label="time of one row, % of float32's in the same run", zero=True)
    up = _drop_axis(points, budget, search.metric)
    marks = [_frame(across, up), _budget_line(up, budget, search.metric), *_stairs(points, across, up)]
    order = {"trial": 0, "front": 1, "chosen": 2}
    marks += [_mark(point, across, up, points) for point in sorted(points, key=lambda point: order[point.kind])]
    plot = element("svg", *marks, class_="scatter", height=_HEIGHT + 44)
    return element("div", _scale(up), plot, class_="pareto")


def _points(search: Search) -> Iterator[_Point]:
    factor = wording.scale(search.metric)
    for number, trial in enumerate(search.trials, start=1):
        if trial.failure is None and trial.drop is not None and trial.speedup:
            kind = "chosen" if trial.key == search.chosen else "front" if trial.key in search.front else "trial"
            yield _Point(
                trial=trial,
                number=number,
                time=100 / trial.speedup,
                drop=trial.drop.value * factor,
                low=trial.drop.low * factor,
                high=trial.drop.high * factor,
                kind=kind,
            )


def _drop_axis(points: Sequence[_Point], budget: float, metric: str) -> Axis:
    unit = wording.unit(metric, of_drop=True)
    near = [point for point in points if point.kind != "trial" or point.drop <= _BEYOND * budget] or points
    drops = [value for point in near for value in (point.drop, min(point.high, point.drop + budget))]
    lows = [max(point.low, point.drop - budget) for point in near]
    label = f"drop of {wording.title_of(metric)} on the selection rows{f', {unit}' if unit else ''}: lower is better"
    return axis_over([*drops, *lows, 1.1 * budget], label=label, zero=True)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT * (1 - axis.share(value))


def _frame(across: Axis, up: Axis) -> Markup:
    lines = [
        element("line", x1=across.at(tick), x2=across.at(tick), y1=0, y2=_HEIGHT, class_="grid")
        for tick in across.ticks
    ]
    lines += [
        element("line", x1="0%", x2="100%", y1=_y(up, tick), y2=_y(up, tick), class_="zero" if tick == 0 else "grid")
        for tick in up.ticks
    ]
    lines += [tick_text(across, tick, y=_HEIGHT + 16) for tick in across.ticks]
    label = element("text", across.label, x="50%", y=_HEIGHT + 36, text_anchor="middle", class_="label")
    return joined([*lines, label])


def _scale(up: Axis) -> Markup:
    texts = [
        element("text", up.write(tick), x="100%", y=_y(up, tick) + 4, text_anchor="end", class_="tick")
        for tick in up.ticks
    ]
    return joined(
        [
            element("div", up.label, class_="scale-label"),
            element("svg", *texts, class_="scale", height=_HEIGHT + 44),
        ]
    )


def _budget_line(up: Axis, budget: float, metric: str) -> Markup:
    y = _y(up, budget)
    line = element("line", x1="0%", x2="100%", y1=y, y2=y, class_="budget")
    text = f"budget {wording.amount(metric, budget / wording.scale(metric))}"
    return joined([line, element("text", text, x="0%", dx=6, y=y - 6, text_anchor="start", class_="guide-name")])


def _stairs(points: Sequence[_Point], across: Axis, up: Axis) -> Iterator[Markup]:
    """Join the front's points as stairs: between two of them nothing better is known."""
    front = sorted((point for point in points if point.kind != "trial"), key=lambda point: point.time)
    best: list[_Point] = []
    for point in front:
        if not best or point.drop < best[-1].drop:
            best.append(point)
    for left, right in pairwise(best):
        x1, x2, y1, y2 = across.at(left.time), across.at(right.time), _y(up, left.drop), _y(up, right.drop)
        yield element("line", x1=x1, x2=x2, y1=y1, y2=y1, class_="stairs")
        yield element("line", x1=x2, x2=x2, y1=y1, y2=y2, class_="stairs")


def _mark(point: _Point, across: Axis, up: Axis, points: Sequence[_Point]) -> Markup:
    x, y = across.at(point.time), _y(up, point.drop)
    outside = point.drop > up.high or point.time > across.high
    radius = _radius(point, points)
    parts = []
    if not outside:
        parts.append(
            element(
                "line", x1=x, x2=x, y1=_y(up, point.low), y2=_y(up, point.high), class_=f"whisker thin {point.kind}"
            )
        )
    if point.kind == "chosen":
        parts.append(element("circle", cx=x, cy=y, r=radius + 4, class_="ring"))
    kind = f"point {point.kind}{' outside' if outside else ''}"
    parts.append(element("circle", cx=x, cy=y, r=radius, class_=kind))
    parts.append(
        element(
            "text",
            str(point.number),
            x=x,
            y=y + 4,
            text_anchor="middle",
            class_=f"number{' outside' if outside else ''}",
        )
    )
    if point.kind == "chosen":
        parts.append(_chosen_name(x, y, room=across.share(point.time) > _ROOM_FOR_A_NAME, radius=radius))
    return titled(joined(parts), _told(point))


def _chosen_name(x: str, y: float, *, room: bool, radius: float) -> Markup:
    """Write beside the chosen point, left of it where there is room, for faster ones are rare."""
    away = radius + 10
    anchor = "end" if room else "start"
    return element("text", "chosen", x=x, dx=-away if room else away, y=y + 4, text_anchor=anchor, class_="chosen-name")


def _radius(point: _Point, points: Sequence[_Point]) -> float:
    largest = max((other.trial.size_bytes or 0 for other in points), default=0) or 1
    return max(_SMALLEST, _LARGEST * math.sqrt((point.trial.size_bytes or 0) / largest))


def _told(point: _Point) -> str:
    trial = point.trial
    size = f", {wording.size(trial.size_bytes)}" if trial.size_bytes is not None else ""
    return f"{point.number}: {summary(trial.recipe)}: {point.time:.0f} % of the time, drop {point.drop:.2f}{size}"
