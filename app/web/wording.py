"""Numbers and facts of a report as a reader wants them: few digits, always a unit."""

import math

from app.domain.evidence import Interval
from app.domain.metrics import METRICS
from app.domain.reports import Report
from app.domain.variants import FLOAT32

SPACE = "\u00a0"
"""Keeps a number and its unit on one line."""

_UNITS = ("B", "kB", "MB", "GB", "TB")


def digits(value: float, *, figures: int = 3) -> str:
    """Write a number with so many figures and no exponent where it can be avoided."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if abs(value) < 1e-4 or abs(value) >= 1e9:  # noqa: PLR2004
        return f"{value:.2g}"
    places = max(0, figures - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def size(count: float) -> str:
    """Write bytes in units of a thousand."""
    power = 0
    while abs(count) >= 1000 and power < len(_UNITS) - 1:  # noqa: PLR2004
        count, power = count / 1000, power + 1
    return f"{digits(count) if power else round(count)}{SPACE}{_UNITS[power]}"


def milliseconds(value: float) -> str:
    """Write a time, in microseconds where it is short."""
    return f"{digits(value)}{SPACE}ms" if value >= 0.1 else f"{digits(1000 * value)}{SPACE}µs"  # noqa: PLR2004


def seconds(value: float) -> str:
    """Write how long something took."""
    return f"{digits(value)}{SPACE}s" if value < 120 else f"{digits(value / 60)}{SPACE}min"  # noqa: PLR2004


def share(value: float, *, places: int = 1) -> str:
    """Write a share as a percentage."""
    return f"{100 * value:.{places}f}{SPACE}%"


def times(factor: float) -> str:
    """Write a ratio of speeds."""
    return f"{factor:.2f}\u00d7"


def is_share(metric: str) -> bool:
    """Whether a metric is a share, which readers know in percent and points."""
    return metric in METRICS and METRICS[metric].unit == "share"


def scale(metric: str) -> float:
    """Return what a metric's value is multiplied with before it is shown."""
    return 100.0 if is_share(metric) else 1.0


def unit(metric: str, *, of_drop: bool = False) -> str:
    """Return the unit of a metric's shown value, or of its drop."""
    if is_share(metric):
        return "points" if of_drop else "%"
    kind = METRICS.get(metric)
    return kind.unit if kind is not None and kind.unit in ("dB", "nats") else ""


def measured(metric: str, value: float) -> str:
    """Write a metric's value with its unit."""
    if is_share(metric):
        return f"{100 * value:.2f}{SPACE}%"
    if metric == "cosine":
        return f"{value:.5f}"
    return f"{digits(value, figures=4)}{SPACE}{unit(metric)}".strip()


def amount(metric: str, drop: float) -> str:
    """Write how much a drop is, without its direction."""
    shown = abs(drop) * scale(metric)
    text = f"{shown:.2f}" if is_share(metric) else f"{shown:.5f}" if metric == "cosine" else digits(shown, figures=2)
    return f"{text}{SPACE}{unit(metric, of_drop=True)}".strip()


def worse(metric: str, drop: float) -> str:
    """Write a drop with its direction in a word."""
    if amount(metric, drop) == amount(metric, 0.0):
        return "as good"
    return f"{amount(metric, drop)} {'worse' if drop > 0 else 'better'}"


def worse_between(metric: str, drop: Interval) -> str:
    """Write a drop's interval with directions in words."""
    return f"95 %: {worse(metric, drop.low)} to {worse(metric, drop.high)}"


def title_of(metric: str) -> str:
    """Return a metric's name as a reader writes it."""
    names = {"top1": "top-1", "top5": "top-5", "f1": "F1", "miou": "mIoU", "psnr": "PSNR", "sqnr": "SQNR", "kl": "KL"}
    return names.get(metric, metric.upper() if metric in ("mae", "rmse") else metric)


def speed(report: Report) -> str | None:
    """Say how fast the variant is beside float32; None if that was not measured."""
    latency = report.latency.get(report.variant)
    if latency is None or report.variant == FLOAT32:
        return None
    if latency.speedup >= 1:
        return f"{times(latency.speedup)} as fast as float32"
    return f"slower than float32 ({times(latency.speedup)} its speed)"
