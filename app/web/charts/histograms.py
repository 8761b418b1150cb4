"""Small pictures of a tensor's values before and after."""

import math

from markupsafe import Markup

from app.domain.evidence import Histogram
from app.web import wording
from app.web.svg import element, percent

_HEIGHT = 84


def histogram_chart(histogram: Histogram) -> Markup:
    """Draw the counts before as an outline and after as bars, heights by square root so that tails are seen."""
    bins = max(len(histogram.before), len(histogram.after), 1)
    tallest = math.sqrt(max([*histogram.before, *histogram.after, 1]))
    after = [_bar(number, count, bins, tallest) for number, count in enumerate(histogram.after) if count]
    ends = [
        element("text", wording.digits(value), x=x, y=_HEIGHT + 14, text_anchor=anchor, class_="tick")
        for value, x, anchor in ((histogram.low, "0%", "start"), (histogram.high, "100%", "end"))
    ]
    if histogram.low < 0 < histogram.high:
        zero = percent(-histogram.low / (histogram.high - histogram.low))
        ends.append(element("line", x1=zero, x2=zero, y1=0, y2=_HEIGHT, class_="zero"))
    ground = element("line", x1="0%", x2="100%", y1=_HEIGHT, y2=_HEIGHT, class_="ground")
    return element(
        "svg",
        *after,
        *_outline(histogram.before, bins, tallest),
        ground,
        *ends,
        class_="histogram",
        height=_HEIGHT + 18,
    )


def _top(count: int, tallest: float) -> float:
    return _HEIGHT - (_HEIGHT - 4) * math.sqrt(count) / tallest


def _bar(number: int, count: int, bins: int, tallest: float) -> Markup:
    top = _top(count, tallest)
    width = percent(1 / bins)
    return element("rect", x=percent(number / bins), y=top, width=width, height=_HEIGHT - top, class_="after")


def _outline(counts: tuple[int, ...], bins: int, tallest: float) -> list[Markup]:
    """Draw steps: a line along the top of every bin, and one up or down between two."""
    tops = [_top(count, tallest) for count in counts]
    lines = [
        element("line", x1=percent(n / bins), x2=percent((n + 1) / bins), y1=top, y2=top, class_="before")
        for n, top in enumerate(tops)
    ]
    ups = zip([_HEIGHT, *tops], [*tops, _HEIGHT], strict=True)
    lines += [
        element("line", x1=percent(n / bins), x2=percent(n / bins), y1=low, y2=high, class_="before")
        for n, (low, high) in enumerate(ups)
        if low != high
    ]
    return lines
