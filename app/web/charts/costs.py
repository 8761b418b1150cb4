"""Charts of what a form costs: latency as a distribution, memory and bytes as bars."""

from collections.abc import Mapping

from markupsafe import Markup

from app.domain.reports import Latency, Memory, Size
from app.domain.variants import FLOAT32
from app.web import wording
from app.web.charts.marks import bar, form_kind
from app.web.svg import Axis, Row, axis_over, element, joined, percent, rows_chart, titled

_STEPS = 20  # quantiles are 5 % apart
_TALL = 34


def latency_chart(latency: Mapping[str, Latency]) -> Markup:
    """Draw every form's distribution: the darker, the more of the runs; the line is the median.

    The axis begins at 0, so that lengths compare, and ends where the slowest form's slowest 5 % begin.
    """
    axis = axis_over([1.02 * max(one.p50_ms, one.p95_ms) for one in latency.values()], label="one row, ms", zero=True)
    rows = [
        Row(
            name=form,
            marks=titled(_distribution(one, axis, form_kind(form)), _told(form, one)),
            value=_value(form, one),
            kind=form_kind(form),
            height=_TALL,
        )
        for form, one in latency.items()
    ]
    return rows_chart(rows, axis)


def _value(form: str, one: Latency) -> str:
    median = wording.milliseconds(one.p50_ms)
    return median if form == FLOAT32 else f"{median} ({wording.times(one.speedup)})"


def _told(form: str, one: Latency) -> str:
    names = (("p50", one.p50_ms), ("p95", one.p95_ms), ("p99", one.p99_ms))
    return f"{form}: " + ", ".join(f"{name} {wording.milliseconds(value)}" for name, value in names)


def _distribution(one: Latency, axis: Axis, kind: str) -> Markup:
    middle = _TALL / 2
    ends = (one.quantiles_ms[0], one.quantiles_ms[-1]) if one.quantiles_ms else (one.p50_ms, one.p99_ms)
    parts = [
        element("line", x1=axis.at(ends[0]), x2=axis.at(ends[1]), y1=middle, y2=middle, class_=f"whisker thin {kind}")
    ]
    if len(one.quantiles_ms) == _STEPS + 1:
        parts += [_band(one.quantiles_ms[n], one.quantiles_ms[_STEPS - n], axis, kind) for n in range(1, _STEPS // 2)]
    else:
        parts.append(_band(one.p50_ms, one.p95_ms, axis, kind))
    median = axis.at(one.p50_ms)
    parts.append(element("line", x1=median, x2=median, y1=5, y2=_TALL - 5, class_=f"median {kind}"))
    return joined(parts)


def _band(low: float, high: float, axis: Axis, kind: str) -> Markup:
    width = percent(max(axis.share(high) - axis.share(low), 0.002))
    return element("rect", x=axis.at(low), y=9, width=width, height=_TALL - 18, class_=f"band {kind}")


def size_chart(size: Size, variant: str) -> Markup:
    """Draw the artifact's bytes beside its float32 parent's."""
    amounts = {FLOAT32: size.float32_bytes} | ({variant: size.bytes} if variant != FLOAT32 else {})
    words = {variant: f"{wording.size(size.bytes)} ({wording.share(size.ratio, places=0)})"} if size.ratio != 1 else {}
    return _bytes_chart(amounts, words, label="on disk")


def memory_chart(memory: Mapping[str, Memory]) -> Markup:
    """Draw what every form adds to a process that loads it."""
    return _bytes_chart({form: one.added_bytes for form, one in memory.items()}, {}, label="added to a process")


def _bytes_chart(amounts: Mapping[str, int], words: Mapping[str, str], *, label: str) -> Markup:
    factor, unit = _unit_of(max(amounts.values(), default=0))
    axis = axis_over([amount / factor for amount in amounts.values()], label=f"{label}, {unit}", zero=True)
    rows = [
        Row(
            name=form,
            marks=bar(0.0, amount / factor, axis, y=5, height=16, kind=form_kind(form), title=wording.size(amount)),
            value=words.get(form, wording.size(amount)),
            kind=form_kind(form),
        )
        for form, amount in amounts.items()
    ]
    return rows_chart(rows, axis)


def _unit_of(largest: float) -> tuple[float, str]:
    return (1e9, "GB") if largest >= 1e9 else (1e6, "MB") if largest >= 1e6 else (1e3, "kB")  # noqa: PLR2004
