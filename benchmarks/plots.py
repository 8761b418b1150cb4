"""A plot for the docs: speed against closeness to float32, one panel per model, as SVG."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

Point = tuple[str, float, float]
"""Recipe, times faster than float32, SQNR in dB."""

_WIDTH, _HEIGHT, _LEGEND = 380, 320, 190
_LEFT, _TOP, _BOTTOM, _GAP = 52, 46, 48, 30
_COLOURS = {"auto": "#d55e00", "nncf": "#0072b2", "ort": "#009e73", "torchao": "#aa4499"}
_OTHER = "#4b5563"
_LINE = 16


def scatter(panels: Mapping[str, Sequence[Point]]) -> str:
    """Draw one panel per model, two in a row: right is faster, up is closer to float32; numbers name the recipes."""
    filled = {name: points for name, points in panels.items() if points}
    across, down = _LEFT + _WIDTH + _LEGEND + _GAP, _TOP + _HEIGHT + _BOTTOM
    columns = min(2, len(filled))
    width, height = columns * across, -(-len(filled) // 2) * down
    corners = [(number % 2 * across + _LEFT, number // 2 * down + _TOP) for number in range(len(filled))]
    body = "".join(
        f'<g transform="translate({x},{y})">{_panel(name, points)}</g>'
        for (x, y), (name, points) in zip(corners, filled.items(), strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


def _panel(name: str, points: Sequence[Point]) -> str:
    most = 1.1 * max(x for _, x, _ in points)
    low, high = min(y for *_, y in points) - 4, max(y for *_, y in points) + 4
    places = [(x / most * _WIDTH, _HEIGHT - (y - low) / (high - low) * _HEIGHT) for _, x, y in points]
    marks = [
        _mark(number, name, place) for number, ((name, *_), place) in enumerate(zip(points, places, strict=True), 1)
    ]
    return "".join([*_frame(name), *_ticks(most=most, low=low, high=high), *marks, *_legend(points)])


def _frame(name: str) -> list[str]:
    return [
        f'<text y="-14" font-size="14" font-weight="bold">{escape(name)}</text>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#d1d5db"/>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 32}" text-anchor="middle">times as fast as float32 (p50)</text>',
        f'<text transform="translate(-36,{_HEIGHT / 2}) rotate(-90)" text-anchor="middle">SQNR, dB</text>',
    ]


def _ticks(*, most: float, low: float, high: float) -> list[str]:
    parts: list[str] = []
    for step in range(int(most) + 1):
        x = step / most * _WIDTH
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y2="{_HEIGHT}" stroke="#eef0f2"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT + 14}" text-anchor="middle" fill="#6b7280">{step}</text>')
    for tick in range(int(low // 10) * 10 + 10, int(high) + 1, 10):
        y = _HEIGHT - (tick - low) / (high - low) * _HEIGHT
        parts.append(f'<line y1="{y:.1f}" y2="{y:.1f}" x2="{_WIDTH}" stroke="#eef0f2"/>')
        parts.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end" fill="#6b7280">{tick}</text>')
    return parts


def _mark(number: int, name: str, place: tuple[float, float]) -> str:
    x, y = place
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="{_colour(name)}" fill-opacity="0.85" stroke="white"/>'
        f'<text x="{x:.1f}" y="{y + 3:.1f}" text-anchor="middle" fill="white" font-size="9">{number}</text>'
    )


def _legend(points: Sequence[Point]) -> list[str]:
    return [
        f'<text x="{_WIDTH + 16}" y="{_LINE * number - 4}" fill="{_colour(name)}">{number}  {escape(name)}</text>'
        for number, (name, *_) in enumerate(points, 1)
    ]


def _colour(name: str) -> str:
    return _COLOURS.get(name.split(" ", maxsplit=1)[0], _OTHER)
