"""Whether a budget was kept, as far as the rows can tell, and how many rows would tell. Pure arithmetic."""

from collections.abc import Callable, Collection, Iterable, Sequence
from math import ceil
from typing import Protocol, TypeVar

from app.domain.errors import DatasetUnfit
from app.domain.evidence import MetricScore, Outcome, Verdict
from app.domain.intervals import Pairs, paired_difference, wilson
from app.domain.metrics import METRICS, Labels
from app.domain.recipes import Budget

LEAST_ROWS = 30
"""Fewer certify nothing where the interval is resampled: of skewed values it is too narrow then."""
MOST_ROWS = 10**9
"""More than this is said to be out of reach."""

DEFAULTS = ("top1", "miou", "psnr", "mae", "agreement", "cosine")
"""Which metric a budget without one is read in: the first that the rows can give."""

_NEEDS: dict[Labels, str] = {
    "class": "one class label per row",
    "class_map": "a map of class labels per row",
    "values": "real numbers as labels, in the shape of the model's first output",
    "none": "outputs of another shape",
}
_HAS: dict[Labels, str] = {"class": "classes", "class_map": "maps of classes", "values": "real numbers", "none": "none"}


class ByClass(Protocol):
    """A metric on one class, before and after."""

    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def float32(self) -> float: ...
    @property
    def variant(self) -> float: ...


Class = TypeVar("Class", bound=ByClass)


def judge(budget: Budget, score: MetricScore, *, latency_ms: float | None, size_bytes: int | None) -> Verdict:
    """Hold a variant's score, latency and size against a budget.

    Args:
        score: of the budget's metric.
        latency_ms, size_bytes: of the variant; None where they were not measured, which breaks no limit.
    """
    over = _over_limits(budget, latency_ms=latency_ms, size_bytes=size_bytes)
    outcome: Outcome = "missed" if over else _outcome(score, budget.max_drop)
    needed = rows_needed(score, budget.max_drop) if outcome == "not enough rows" else None
    return Verdict(
        budget=budget,
        outcome=outcome,
        drop=score.drop,
        rows=score.rows,
        rows_needed=needed,
        reason=over or _reason(score, budget.max_drop, outcome=outcome, needed=needed),
    )


def rows_needed(score: MetricScore, max_drop: float) -> int | None:
    """Say how many rows would certify a budget if drop and spread stay as they were seen.

    Where each row counts wholly or not at all, the interval for paired proportions (Newcombe 1998, method 10) is solved
    for the number of rows, with the shares of changed rows as seen; elsewhere its half width shrinks with the root of
    the rows, which is n = (z·sd / margin)².

    Returns:
        None if these rows do, if the drop that was seen breaks the budget, or above a thousand million rows.
    """
    margin = max_drop - score.drop.value
    if margin <= 0 or (score.drop.high <= max_drop and not _too_few(score)):
        return None
    if score.changed is not None:
        pairs = _pairs(score, score.changed)
        high = _high_alone if METRICS[score.name].labels == "none" else _high
        return _solve(lambda rows: high(pairs, rows), max_drop)
    needed = score.rows * ((score.drop.high - score.drop.value) / margin) ** 2
    return max(LEAST_ROWS, ceil(needed)) if needed <= MOST_ROWS else None


def certifiable_drop(rows: int, *, changed: float = 0.02, right: float = 0.9) -> float:
    """Return the smallest drop in a share of rows that so many rows can certify, for a variant that loses nothing.

    Args:
        changed: share of rows that are right in one form alone, half of them in each.
        right: share of rows that float32 answers right.
    """
    half = min(changed / 2, right, 1 - right)
    shares = Pairs(both=right - half, only_variant=half, only_float32=half, neither=1 - right - half)
    return _high(shares, rows)


def default_metric(scores: Sequence[MetricScore]) -> MetricScore | None:
    """Return the score that a budget without a metric is read in: the labels' first, then agreement, then cosine."""
    by_name = {score.name: score for score in scores}
    return next((by_name[name] for name in DEFAULTS if name in by_name), None)


def require_metric(name: str, available: Collection[str], *, dataset: str, labels: Labels) -> None:
    """Check that the rows give the budget's metric.

    Args:
        available: names of the metrics that the rows and the model's outputs allow.
        dataset: name of the evaluation set.
        labels: what it has.

    Raises:
        DatasetUnfit: they do not.
    """
    if name in available:
        return
    wanted = METRICS[name].labels
    if wanted in (labels, "none"):
        why = f"The budget's metric {name} does not fit the model's first output and dataset {dataset!r}"
    else:
        why = f"The budget's metric {name} needs {_NEEDS[wanted]}; dataset {dataset!r} has {_HAS[labels]}"
    other = next((other for other in DEFAULTS if other in available), "agreement or cosine")
    sends = "send labels, or " if wanted not in ("none", labels) else ""
    raise DatasetUnfit(f"{why}: {sends}take {other}.")


def unused_labels(labels: Labels, scores: Sequence[MetricScore]) -> str | None:
    """Return a sentence if the rows have labels that no metric could use; None otherwise."""
    if labels == "none" or any(METRICS[score.name].labels == labels for score in scores):
        return None
    return f"The labels ({_HAS[labels]}) do not fit the model's first output, so no metric uses them."


def worst_class(classes: Iterable[Class]) -> Class | None:
    """Return the class that lost most, of several the one with most rows; None if none lost anything."""
    lost = [entry for entry in classes if entry.variant < entry.float32]
    return max(lost, key=lambda entry: (entry.float32 - entry.variant, entry.rows), default=None)


def _over_limits(budget: Budget, *, latency_ms: float | None, size_bytes: int | None) -> str | None:
    broken = []
    if budget.max_latency_ms is not None and latency_ms is not None and latency_ms > budget.max_latency_ms:
        broken.append(f"one row takes {latency_ms:.3g} ms, over the limit of {budget.max_latency_ms:g} ms")
    if budget.max_size_bytes is not None and size_bytes is not None and size_bytes > budget.max_size_bytes:
        broken.append(f"the artifact has {size_bytes:,} bytes, over the limit of {budget.max_size_bytes:,}")
    if not broken:
        return None
    sentence = " and ".join(broken)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _too_few(score: MetricScore) -> bool:
    return score.changed is None and score.rows < LEAST_ROWS


def _outcome(score: MetricScore, max_drop: float) -> Outcome:
    if _too_few(score):
        return "not enough rows"
    if score.drop.high <= max_drop:
        return "kept"
    return "missed" if score.drop.low > max_drop else "not enough rows"


def _reason(score: MetricScore, max_drop: float, *, outcome: Outcome, needed: int | None) -> str:
    budget = _amount(max_drop, score.name)
    low, high = (_number(limit, score.name, signed=True) for limit in (score.drop.low, score.drop.high))
    interval = f"{low} to {high} {_unit(score.name)}".rstrip()
    drop = f"{score.name} drops by {_amount(score.drop.value, score.name)} on {score.rows:,} rows"
    if outcome == "kept":
        return f"{drop} ({interval}), within the budget of {budget}."
    if outcome == "missed":
        return f"{drop} ({interval}), which breaks the budget of {budget}."
    cannot = f"{score.rows:,} rows cannot certify a drop of at most {budget} (the interval is {interval})"
    if needed is not None:
        return f"{cannot}: about {_rounded(needed):,} rows would."
    if score.drop.value > max_drop:
        return f"{cannot}, and the drop that was seen, {_amount(score.drop.value, score.name)}, breaks it."
    return f"{cannot}, and no number of rows would at the drop that was seen."


def _amount(value: float, metric: str) -> str:
    return f"{_number(value, metric)} {_unit(metric)}".rstrip()


def _number(value: float, metric: str, *, signed: bool = False) -> str:
    """Write a value with three digits; shares in points, of which a hundred are the whole."""
    shown = (value * 100 if METRICS[metric].unit == "share" else value) + 0.0
    return f"{shown:+.3g}" if signed and shown else f"{shown:.3g}"


def _unit(metric: str) -> str:
    unit = METRICS[metric].unit
    return {"share": "points", "value": "", "cosine": ""}.get(unit, unit)


def _rounded(rows: int) -> int:
    """Keep two digits, upwards: the rest of such a number is noise."""
    step = int(10 ** max(0, len(str(rows)) - 2))
    return ceil(rows / step) * step


def _pairs(score: MetricScore, changed: tuple[int, int]) -> Pairs:
    """Rebuild the table of right and wrong rows from float32's share and the rows that changed."""
    lost, gained = changed
    right = score.measured["float32"].value * score.rows
    return Pairs(both=right - lost, only_variant=gained, only_float32=lost, neither=score.rows - right - gained)


def _high(shares: Pairs, rows: float) -> float:
    """Return the upper limit of the drop that `rows` rows with these shares would have."""
    return -paired_difference(shares.scaled(rows / shares.rows)).low


def _high_alone(shares: Pairs, rows: float) -> float:
    """Return that limit where float32 is right by definition, so that the variant's share alone is in doubt."""
    share = shares.both / shares.rows
    return 1 - wilson(share * rows, rows=rows)[0]


def _solve(high_at: Callable[[float], float], max_drop: float) -> int | None:
    """Find the least number of rows whose upper limit keeps the budget: the limit falls with the rows."""
    low, high = 1, 1
    while high_at(high) > max_drop:
        low, high = high, high * 2
        if high > MOST_ROWS:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if high_at(middle) <= max_drop else (middle + 1, high)
    return low
