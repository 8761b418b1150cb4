"""Which trial wins: the fastest that keeps the budget, but for one nearly as fast that loses less. Pure rules."""

from collections.abc import Iterable, Sequence

from app.domain.recipes import Budget, Cast
from app.domain.search import Trial

WINDOW = 0.92
"""Share of the fastest one's speed that buys the right to be preferred for losing less."""

MOST_FINALISTS = 6


def measured(trials: Iterable[Trial]) -> list[Trial]:
    """Return those that were made and measured."""
    return [trial for trial in trials if trial.failure is None and trial.speedup is not None]


def eligible(trials: Iterable[Trial], budget: Budget) -> list[Trial]:
    """Return the measured trials that keep the budget, as far as the selection rows tell."""
    return [trial for trial in measured(trials) if not misses(trial, budget)]


def misses(trial: Trial, budget: Budget) -> list[str]:
    """Say which limits a measured trial breaks, and by how much."""
    found: list[str] = []
    drop, latency, size = loss_of(trial), trial.latency_ms or 0.0, trial.size_bytes or 0
    if drop > budget.max_drop:
        found.append(f"it loses {drop:.4g}, and may lose {budget.max_drop:g}")
    if budget.max_latency_ms is not None and latency > budget.max_latency_ms:
        found.append(f"it takes {latency:.3g} ms, and may take {budget.max_latency_ms:g}")
    if budget.max_size_bytes is not None and size > budget.max_size_bytes:
        found.append(f"it has {size:,} bytes, and may have {budget.max_size_bytes:,}")
    return found


def pick(trials: Sequence[Trial]) -> Trial:
    """Return the best of at least one measured trial: of those nearly as fast as the fastest, the one of least loss.

    Loss is the drop where two drops differ beyond their intervals, and the outputs' noise elsewhere: on a few hundred
    rows drops are mostly chance, and the least of many drops would be the luckiest, not the best.
    """
    fastest = max(speed_of(trial) for trial in trials)
    near = [trial for trial in trials if speed_of(trial) >= WINDOW * fastest]
    best = min(near, key=lambda trial: (noise_of(trial), loss_of(trial), -speed_of(trial)))
    surely = [trial for trial in near if _surely_loses_less(trial, best)]
    return min(surely, key=lambda trial: (loss_of(trial), noise_of(trial))) if surely else best


def shortlist(trials: Sequence[Trial], *, most: int = MOST_FINALISTS) -> list[Trial]:
    """Return which of the eligible to time again side by side: the best, the fastest, and the next best."""
    chosen = [pick(trials)]
    fastest = max(trials, key=speed_of)
    if fastest not in chosen:
        chosen.append(fastest)
    rest = [trial for trial in trials if trial not in chosen]
    while rest and len(chosen) < most:
        chosen.append(pick(rest))
        rest.remove(chosen[-1])
    return chosen


def nearest_miss(trials: Sequence[Trial], budget: Budget) -> Trial:
    """Return the measured trial that breaks the budget by the smallest factor."""
    return min(trials, key=lambda trial: _excess(trial, budget))


def front(trials: Iterable[Trial]) -> tuple[str, ...]:
    """Return the keys of the trials that no other beats in drop, latency, size and memory at once (Pareto)."""
    points = [(trial, _costs(trial)) for trial in measured(trials)]
    return tuple(trial.key for trial, costs in points if not any(_dominates(other, costs) for _, other in points))


def is_bfloat16(trial: Trial) -> bool:
    """Whether a trial is float32's graph in bfloat16, which any other has to beat."""
    return isinstance(trial.recipe, Cast) and trial.recipe.precision == "bfloat16"


def speed_of(trial: Trial) -> float:
    """Return how many times as fast as float32 a trial is; nothing for one that was not measured."""
    return trial.speedup or 0.0


def loss_of(trial: Trial) -> float:
    """Return the drop on the selection rows, positive is worse."""
    return trial.drop.value if trial.drop is not None else float("inf")


def noise_of(trial: Trial) -> float:
    """Return the outputs' distance from float32's, 0 or more."""
    return trial.noise if trial.noise is not None else float("inf")


def _surely_loses_less(one: Trial, other: Trial) -> bool:
    return one.drop is not None and other.drop is not None and one.drop.high < other.drop.low


def _excess(trial: Trial, budget: Budget) -> float:
    limits = [
        (max(0.0, loss_of(trial)), budget.max_drop),
        (trial.latency_ms or 0.0, budget.max_latency_ms),
        (trial.size_bytes or 0, budget.max_size_bytes),
    ]
    return max(value / max(limit, 1e-6) for value, limit in limits if limit is not None)


def _costs(trial: Trial) -> tuple[float, ...]:
    return (loss_of(trial), trial.latency_ms or 0.0, trial.size_bytes or 0, trial.memory_bytes or 0)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other
