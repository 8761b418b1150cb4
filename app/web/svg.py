"""Drawing: elements with everything escaped, axes with round ticks, and rows of marks that share one axis.

Places across are percentages and places down are pixels, so that a drawing fills any width and its text keeps its size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

ROW_HEIGHT = 26
_AXIS_HEIGHT = 36
_NEAR_EDGE = 7.0
_NEAR_FOR_NAMES = 30.0
_SHORT = 4  # characters that may reach over the edge by half

Attribute = str | float | None


def element(name: str, *content: str, **attributes: Attribute) -> Markup:
    """Return one element. Names end in `_` where Python keeps the word; `_` inside stands for `-`; None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    start, end = Markup(f"<{name}{written}>"), Markup(f"</{name}>")  # noqa: S704 - names are ours, values escaped
    return start + joined(content) + end


def joined(parts: Sequence[str]) -> Markup:
    """Put parts behind each other; those that are plain text are escaped."""
    return Markup("").join(parts)


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3f}".rstrip("0").rstrip(".")


def percent(share: float) -> str:
    """Write a place across, 0 to 1, as SVG takes it."""
    return f"{_number(round(100 * share, 2))}%"


def titled(shape: str, title: str) -> Markup:
    """Let a shape say something when it is pointed at."""
    return element("g", element("title", title), shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A range of values and its ticks.

    Attributes:
        label: what the values are, with their unit.
        write: makes a tick's text.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    label: str = ""
    write: Callable[[float], str] = field(default=lambda value: f"{value:g}")

    def share(self, value: float) -> float:
        """Return where a value lies, 0 to 1; one outside lies at the edge."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def at(self, value: float) -> str:
        """Return where a value lies across, as SVG takes it."""
        return percent(self.share(value))


def axis_over(
    values: Sequence[float],
    *,
    label: str,
    write: Callable[[float], str] | None = None,
    zero: bool = False,
    ticks: int = 5,
) -> Axis:
    """Return an axis that holds every finite value, with about `ticks` round ticks.

    Args:
        zero: whether it must hold 0, as an axis for bars must.
    """
    held = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(held), max(held)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = (
            (0.0, high or 1.0) if zero and high >= 0 else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))
        )
    step = _round_step((high - low) / ticks)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    marks = tuple(round(low + step * number, 12) for number in range(round((high - low) / step) + 1))
    return Axis(low=low, high=high, ticks=marks, label=label, write=write or (lambda value: f"{value:g}"))


def _round_step(rough: float) -> float:
    """Return the 1, 2 or 5 times a power of ten that is nearest above."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a chart: a name, marks on the common axis, and the value in words."""

    name: str
    marks: str
    value: str = ""
    kind: str = ""
    height: int = ROW_HEIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """A line down through all rows, such as a budget's."""

    at: float
    kind: str
    text: str = ""


def rows_chart(rows: Sequence[Row], axis: Axis, *, guides: Sequence[Guide] = ()) -> Markup:
    """Draw rows one below the other, their axis at the bottom; no rows are no drawing."""
    if not rows:
        return Markup("")
    lines = [_row(row, axis, guides) for row in rows]
    named = [guide for guide in guides if guide.text]
    head = [_guide_names(named, axis)] if named else []
    return element("div", *head, *lines, _axis_line(axis), class_="rows")


def _row(row: Row, axis: Axis, guides: Sequence[Guide]) -> Markup:
    lines = [_down(axis.at(tick), row.height, kind="grid") for tick in axis.ticks]
    lines += [_down(axis.at(guide.at), row.height, kind=guide.kind) for guide in guides]
    return joined(
        [
            element("div", row.name, class_=f"name {row.kind}".strip(), title=row.name),
            element("svg", *lines, row.marks, class_="plot", height=row.height, aria_hidden="true"),
            element("div", row.value, class_=f"value {row.kind}".strip()),
        ]
    )


def _down(x: str, height: float, *, kind: str) -> Markup:
    return element("line", x1=x, x2=x, y1=0, y2=height, class_=kind)


def _guide_names(guides: Sequence[Guide], axis: Axis) -> Markup:
    texts = [
        element(
            "text",
            guide.text,
            x=axis.at(guide.at),
            y=12,
            text_anchor=anchor(axis, guide.at, near=_NEAR_FOR_NAMES),
            class_="guide-name",
        )
        for guide in guides
    ]
    drawn = element("svg", *texts, class_="plot", height=18)
    return joined([element("div", class_="name empty"), drawn, element("div", class_="value empty")])


def _axis_line(axis: Axis) -> Markup:
    texts = [tick_text(axis, tick, y=14) for tick in axis.ticks]
    label = element("text", axis.label, x="50%", y=31, text_anchor="middle", class_="label")
    drawn = element("svg", *texts, label, class_="plot", height=_AXIS_HEIGHT)
    return joined([element("div", class_="name empty"), drawn, element("div", class_="value empty")])


def tick_text(axis: Axis, tick: float, *, y: float) -> Markup:
    """Write a tick's value below its place across."""
    text = axis.write(tick)
    where = "middle" if len(text) <= _SHORT else anchor(axis, tick)
    return element("text", text, x=axis.at(tick), y=y, text_anchor=where, class_="tick")


def anchor(axis: Axis, value: float, *, near: float = _NEAR_EDGE) -> str:
    """Return how a text stands at its place, so that it never leaves the drawing."""
    share = 100 * axis.share(value)
    if share < near:
        return "start"
    return "end" if share > 100 - near else "middle"
