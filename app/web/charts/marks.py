"""Marks that several charts draw: a dot with whiskers, a bar; and which colour a form or a precision has."""

from markupsafe import Markup

from app.domain.evidence import Interval
from app.domain.training import PTQ, TRAINED
from app.domain.variants import FLOAT32
from app.web.svg import ROW_HEIGHT, Axis, element, joined, percent, titled

MIDDLE = ROW_HEIGHT / 2


def form_kind(form: str) -> str:
    """Return the colour class of a form."""
    return {FLOAT32: "float32", "bfloat16": "bfloat16", PTQ: "ptq", TRAINED: "ptq"}.get(form, "variant")


def precision_kind(precision: str) -> str:
    """Return the colour class of what a layer computed in, as the engine names it."""
    parts = {part.strip() for part in precision.split(",")}
    if len(parts) > 1:
        return "mixed"
    (only,) = parts
    kinds = {"u8": "int8", "i8": "int8", "u4": "int4", "i4": "int4", "bf16": "bfloat16", "f16": "float16"}
    return kinds.get(only, "float32")


def whisker(interval: Interval, axis: Axis, *, kind: str, title: str, factor: float = 1.0) -> Markup:
    """Draw a value as a dot on the line of its interval."""
    low, high = axis.at(interval.low * factor), axis.at(interval.high * factor)
    parts = [element("line", x1=low, x2=high, y1=MIDDLE, y2=MIDDLE, class_=f"whisker {kind}")]
    parts += [
        element("line", x1=end, x2=end, y1=MIDDLE - 5, y2=MIDDLE + 5, class_=f"whisker {kind}") for end in (low, high)
    ]
    parts.append(element("circle", cx=axis.at(interval.value * factor), cy=MIDDLE, r=5.5, class_=f"dot {kind}"))
    return titled(joined(parts), title)


def bar(start: float, end: float, axis: Axis, *, y: float, height: float, kind: str, title: str = "") -> Markup:
    """Draw a bar between two values; one of no length at all is drawn as a hair."""
    left, right = sorted((axis.share(start), axis.share(end)))
    width = max(right - left, 0.002)
    shape = element("rect", x=percent(left), y=y, width=percent(width), height=height, rx=2, class_=f"bar {kind}")
    return titled(shape, title) if title else shape
