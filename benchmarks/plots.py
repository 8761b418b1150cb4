"""A plot for the README: speed against closeness to float32, one panel per model, as SVG."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

Point = tuple[str, float, float]
"""Recipe, times faster than float32, SQNR in dB."""

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 420, 300, 56, 44, 28
_COLOURS = {"auto": "#d55e00", "nncf": "#0072b2", "ort": "#009e73", "torchao": "#cc79a7"}
_OTHER = "#6b7280"


def scatter(panels: Mapping[str, Sequence[Point]]) -> str:
    """Draw one panel per model, two in a row: right is faster, up is closer to float32."""
    filled = {name: points for name, points in panels.items() if points}
    rows = -(-len(filled) // 2)
    width, height = 2 * (_WIDTH + _LEFT + _GAP), rows * (_HEIGHT + _TOP + 2 * _GAP)
    body = "".join(
        f'<g transform="translate({(number % 2) * (_WIDTH + _LEFT + _GAP) + _LEFT},'
        f'{(number // 2) * (_HEIGHT + _TOP + 2 * _GAP) + _TOP})">{_panel(name, points)}</g>'
        for number, (name, points) in enumerate(filled.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


def _panel(name: str, points: Sequence[Point]) -> str:
    most_x = 1.1 * max(x for _, x, _ in points)
    low, high = min(y for *_, y in points) - 3, max(y for *_, y in points) + 3
    parts = [
        f'<text x="0" y="-14" font-size="14" font-weight="bold">{escape(name)}</text>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#d1d5db"/>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 30}" text-anchor="middle">times faster than float32 (p50)</text>',
        f'<text transform="translate(-40,{_HEIGHT / 2}) rotate(-90)" text-anchor="middle">SQNR, dB</text>',
    ]
    for step in range(int(most_x) + 1):
        x = step / most_x * _WIDTH
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y2="{_HEIGHT}" stroke="#eef0f2"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT + 14}" text-anchor="middle" fill="#6b7280">{step}x</text>')
    for tick in range(int(low // 10) * 10 + 10, int(high) + 1, 10):
        y = _HEIGHT - (tick - low) / (high - low) * _HEIGHT
        parts.append(f'<line y1="{y:.1f}" y2="{y:.1f}" x2="{_WIDTH}" stroke="#eef0f2"/>')
        parts.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end" fill="#6b7280">{tick}</text>')
    places = [(x / most_x * _WIDTH, _HEIGHT - (y - low) / (high - low) * _HEIGHT) for _, x, y in points]
    parts += [_point(name, x, y) for (name, *_), (x, y) in zip(points, places, strict=True)]
    parts += _labels([name for name, *_ in points], places)
    return "".join(parts)


def _point(name: str, x: float, y: float) -> str:
    radius = 7 if name == "auto" else 4.5
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{_colour(name)}" fill-opacity="0.85"/>'


def _labels(names: Sequence[str], places: Sequence[tuple[float, float]]) -> list[str]:
    """Write names beside points, each pushed down as far as it takes not to lie on another."""
    taken: list[tuple[float, float]] = []
    parts: list[str] = []
    for name, (x, y) in sorted(zip(names, places, strict=True), key=lambda each: each[1][1]):
        leftwards = x > _WIDTH * 0.66
        at = y + 4
        while any(abs(at - other) < 11 and abs(x - beside) < 130 for beside, other in taken):  # noqa: PLR2004
            at += 3
        taken.append((x, at))
        offset, anchor = (-9, "end") if leftwards else (9, "start")
        place = f'x="{x + offset:.1f}" y="{at:.1f}" text-anchor="{anchor}" fill="{_colour(name)}"'
        parts.append(f"<text {place}>{escape(name)}</text>")
    return parts


def _colour(name: str) -> str:
    return _COLOURS.get(name.split(" ", maxsplit=1)[0], _OTHER)
