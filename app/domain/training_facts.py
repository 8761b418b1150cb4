"""What a reader should know of a training, in words: the same on the page and in the terminal. Draws nothing."""

from collections.abc import Iterator

from app.domain.recipes import Qat, Single
from app.domain.training import StartScore, Training, TrainingOutcome

_SCALES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_MINUTES_FROM = 120


def training_facts(training: Training, recipe: Single | None) -> list[tuple[str, str]]:
    """Return names and sentences, the most important first."""
    return list(_facts(training, training.outcome, recipe))


def _facts(training: Training, outcome: TrainingOutcome, recipe: Single | None) -> Iterator[tuple[str, str]]:
    given = "the trained artifact" if training.returned == "trained" else "the start, not the trained artifact"
    yield "published", f"{given}. {training.choice}"
    yield "began from", _began(outcome)
    if isinstance(recipe, Qat):
        yield "objective", _taught(recipe, outcome.teacher)
    yield "ended", _ended(outcome)
    yield "best step", _best(outcome)
    yield (
        "artifact",
        f"answers {outcome.checked_same:,} of {outcome.checked_rows:,} held-out rows like the fake-quantized module",
    )
    yield "trained", _trained(training, outcome)
    if outcome.resumed_at:
        yield "resumed", f"at step {', '.join(f'{step:,}' for step in outcome.resumed_at)}, from a checkpoint"
    if outcome.forecast is not None:
        told = outcome.forecast
        before = f"{_seconds(told.seconds)} and {_bytes(told.memory_bytes)}"
        yield (
            "forecast",
            f"{before}; it took {_seconds(told.actual_seconds)} and {_bytes(told.actual_memory_bytes)}",
        )
    if outcome.wire is not None:
        sent, plain = outcome.wire.sent_bytes, outcome.wire.plain_bytes
        share = f", {100 * sent / plain:.3g} % of float32's {_bytes(plain)}" if plain else ""
        yield "on the wire", f"{_bytes(sent)} a step from each process{share} (compression {outcome.wire.hook})"


def _taught(recipe: Qat, teacher: str | None) -> str:
    loss = recipe.loss.replace("_", " ")
    if recipe.uses_labels:
        return f"{loss}, against the labels"
    temperature = f" at temperature {recipe.temperature:g}" if recipe.loss == "distillation" else ""
    return f"{loss} from {teacher or 'float32'}{temperature}, without labels"


def _began(outcome: TrainingOutcome) -> str:
    taken = next((start for start in outcome.starts if start.recipe == outcome.start), None)
    score = f" ({_scored(taken)})" if taken else ""
    others = [f"{start.recipe} ({_scored(start)})" for start in outcome.starts if start.recipe != outcome.start]
    return f"{outcome.start}{score}" + (f"; tried beside it: {'; '.join(others)}" if others else "")


def _scored(start: StartScore) -> str:
    agreement = "" if start.agreement is None else f", agreement {100 * start.agreement:.2f} %"
    return f"held-out loss {start.score:.4g}{agreement}"


def _ended(outcome: TrainingOutcome) -> str:
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"{outcome.ended}, after {outcome.steps_done:,} of {outcome.steps:,} steps{reason}"


def _best(outcome: TrainingOutcome) -> str:
    if outcome.best_step == 0:
        return "0: no step was better than the start"
    score = next((point.score for point in outcome.points if point.step == outcome.best_step), None)
    return f"{outcome.best_step:,}" if score is None else f"{outcome.best_step:,}, held-out loss {score:.4g}"


def _trained(training: Training, outcome: TrainingOutcome) -> str:
    together = "" if outcome.processes == 1 else f" by {outcome.processes} processes"
    speed = f"{outcome.rows_per_second:,.0f} rows/s, {_seconds(outcome.seconds)}{together}"
    rows = f"{training.rows.rows:,} rows of {training.rows.dataset}, {training.held_out.rows:,} more held out"
    return f"{outcome.parameters:,} numbers on {rows}; {speed}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < _MINUTES_FROM else f"{seconds / 60:.3g} min"


def _bytes(count: float) -> str:
    factor, unit = next(((factor, unit) for factor, unit in _SCALES if count >= factor), (1, "B"))
    return f"{count / factor:.3g} {unit}"
