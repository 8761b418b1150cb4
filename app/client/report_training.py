"""A report's chapter on training for the terminal: the forms side by side, the curves in small, and what to know."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.domain.reports import Report
from app.domain.training import PTQ, TRAINED, TrainingPoint
from app.domain.training_facts import training_facts
from app.domain.variants import FLOAT32

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDEST = 60
_BESIDE = 40  # columns that names and numbers take


def training_view(report: Report, *, width: int) -> RenderableType | None:
    """Return the chapter; None where nothing was trained."""
    if report.training is None:
        return None
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    lines = [
        *_side_by_side(report),
        *_curves(report.training.outcome.points, width=width),
        *training_facts(report.training, report.recipe),
    ]
    for name, words in lines:
        grid.add_row(name, Text(words))
    return Group(Text("Training", style="bold"), grid)


def _side_by_side(report: Report) -> Iterator[tuple[str, str]]:
    forms = (FLOAT32, PTQ, TRAINED, report.variant)
    if report.accuracy is not None:
        measured = report.accuracy.measured
        shares = [f"{form} {100 * measured[form].value:.2f} %" for form in forms if form in measured]
        yield "accuracy", ", ".join(shares)
    agreements = {form: one.agreement for form, one in report.fidelity.items() if one.agreement is not None}
    shares = [f"{form} {100 * agreements[form].value:.2f} %" for form in forms if form in agreements]
    if shares:
        yield "agreement", ", ".join(shares)


def _curves(points: Sequence[TrainingPoint], *, width: int) -> Iterator[tuple[str, str]]:
    curves = {
        "loss": [point.loss for point in points if point.loss is not None],
        "held-out": [point.score for point in points if point.score is not None],
    }
    for name, values in curves.items():
        finite = [value for value in values if math.isfinite(value)]
        if len(finite) > 1:
            drawn = sparkline(finite, most=max(1, min(_WIDEST, width - _BESIDE)))
            yield name, f"{drawn} {finite[0]:.4g} to {finite[-1]:.4g}"


def sparkline(values: Sequence[float], *, most: int) -> str:
    """Draw values as blocks between the lowest and the highest; of more than `most`, means of neighbours."""
    count = min(most, len(values))
    ends = [round(number * len(values) / count) for number in range(count + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(ends)]
    low, high = min(means), max(means)
    step = (high - low) / (len(_BLOCKS) - 1) or 1.0
    return "".join(_BLOCKS[round((mean - low) / step)] for mean in means)
