"""Why a search chose what it chose, in a sentence a person understands."""

from collections.abc import Sequence

from app.domain.metrics import METRICS
from app.domain.recipes import Budget
from app.domain.recipes.summary import summary
from app.domain.search import Trial
from workers.jobs.search.choice import is_bfloat16, loss_of, misses, noise_of, speed_of

_BARELY = 1.02


def reason(chosen: Trial, finalists: Sequence[Trial], trials: Sequence[Trial], *, metric: str, speedup: float) -> str:
    """Say why this one, among the trials that keep the budget.

    Args:
        finalists: those timed side by side, the chosen one among them.
        trials: all that were measured.
        speedup: of the final measuring.
    """
    told = f"{speedup:.2f} times as fast as float32 and {_loses(chosen, metric)}"
    words = f"{summary(chosen.recipe)} is {told}"
    fastest = max(finalists, key=speed_of)
    if fastest.key != chosen.key and speed_of(fastest) > speed_of(chosen):
        gain = speed_of(fastest) / speed_of(chosen) - 1
        further = noise_of(fastest) > noise_of(chosen)
        price = "its outputs are further from float32's" if further else "loses more"
        return f"{words}; the fastest that keeps the budget is {gain:.0%} faster and {price}."
    if is_bfloat16(chosen):
        return f"Nothing that keeps the budget beats bfloat16, so bfloat16 it is: it is {told}."
    if speedup < _BARELY:
        return f"{words}; nothing that keeps the budget is faster than float32."
    return f"{words}; of {len(trials)} trials none that keeps the budget is faster."


def missed(nearest: Trial, budget: Budget, *, metric: str) -> str:
    """Say that nothing keeps the budget, and what came nearest."""
    limits = " and ".join(misses(nearest, budget))
    return f"Nothing keeps the budget in {metric}: nearest came {summary(nearest.recipe)}, but {limits}."


def _loses(trial: Trial, metric: str) -> str:
    drop, unit = loss_of(trial), METRICS[metric].unit
    value, word = (100 * drop, "points") if unit == "share" else (drop, unit)
    if value <= 0:
        return f"loses nothing of {metric} on the rows that chose"
    return f"loses {value:.2g} {word} of {metric} on the rows that chose"
