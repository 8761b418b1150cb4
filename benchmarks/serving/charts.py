"""Two small plots as SVG: lines over an axis, and grouped bars. `benchmarks/plots.py` draws the quantization's."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _LEGEND, _LINE = 460, 260, 60, 40, 46, 240, 16
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#aa4499",
    "#e69f00",
    "#56b4e9",
    "#4b5563",
    "#882255",
    "#117733",
    "#999933",
)
_TICKS = 4
_MOST_DOTS = 30


def lines(title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, across: str, up: str) -> str:
    """Draw one line per series, from zero on both axes."""
    points = [point for one in series.values() for point in one]
    most_x = max((x for x, _ in points), default=1) or 1
    most_y = 1.05 * max((y for _, y in points), default=1) or 1
    drawn = [
        _line([(x / most_x * _WIDTH, _HEIGHT - y / most_y * _HEIGHT) for x, y in one], colour=_colour(number))
        for number, one in enumerate(series.values())
    ]
    marks = [_tick_x(step / _TICKS * _WIDTH, _number(most_x * step / _TICKS)) for step in range(_TICKS + 1)]
    return _picture(title, list(series), [*_frame(across, up, most_y), *marks, *drawn])


def bars(title: str, groups: Mapping[str, Mapping[str, float]], *, up: str) -> str:
    """Draw one group of bars for each entry, in it one bar per name, from zero."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    most = 1.05 * max((value for group in groups.values() for value in group.values()), default=1) or 1
    wide = _WIDTH / max(1, len(groups))
    each = 0.8 * wide / max(1, len(names))
    drawn: list[str] = []
    for place, (label, group) in enumerate(groups.items()):
        drawn.append(_tick_x((place + 0.5) * wide, label))
        for name, value in group.items():
            tall = value / most * _HEIGHT
            left = (place + 0.1) * wide + names.index(name) * each
            drawn.append(
                f'<rect x="{left:.1f}" y="{_HEIGHT - tall:.1f}" width="{each * 0.92:.1f}" height="{tall:.1f}" '
                f'fill="{_colour(names.index(name))}"/>'
            )
    return _picture(title, names, [*_frame("", up, most), *drawn])


def _picture(title: str, names: Sequence[str], parts: Sequence[str]) -> str:
    height = max(_TOP + _HEIGHT + _BOTTOM, _TOP + _LINE * len(names))
    legend = [
        f'<text x="{_WIDTH + 16}" y="{_LINE * (number + 1)}" fill="{_colour(number)}">{escape(name)}</text>'
        for number, name in enumerate(names)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + _LEGEND} {height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<g transform="translate({_LEFT},{_TOP})">'
        f'<text y="-16" font-size="14" font-weight="bold">{escape(title)}</text>'
        f"{''.join([*parts, *legend])}</g></svg>\n"
    )


def _frame(across: str, up: str, most: float) -> list[str]:
    parts = [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#d1d5db"/>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 34}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(-46,{_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>',
    ]
    for step in range(_TICKS + 1):
        y = _HEIGHT * (1 - step / _TICKS)
        parts.append(f'<line y1="{y:.1f}" y2="{y:.1f}" x2="{_WIDTH}" stroke="#eef0f2"/>')
        text = _number(most * step / _TICKS)
        parts.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end" fill="#6b7280">{text}</text>')
    return parts


def _line(points: Sequence[tuple[float, float]], *, colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in points if len(points) <= _MOST_DOTS
    )
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dots}'


def _tick_x(x: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT + 16}" text-anchor="middle" fill="#6b7280">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"  # noqa: PLR2004  (below ten, halves matter)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]
