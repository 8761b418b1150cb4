"""What a trained variant has to show beside what it began from, and which of the two is published."""

from dataclasses import dataclass, replace

from app.domain.errors import DatasetUnfit, JobFailure, SandboxUnavailable
from app.domain.recipes import Qat
from app.domain.training import PTQ, TRAINED, Training
from workers.jobs.bench import Bench
from workers.jobs.lookup import Order
from workers.jobs.proof import Measured, examine, measure
from workers.jobs.reporting import Evidence
from workers.jobs.training.choice import Choice, choose, unmeasured, untrained
from workers.jobs.transforming import Made, Trained
from workers.stage_records.measuring import Form

_FIRST_SHARE = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What is to be published, and what was found out about it."""

    made: Made
    evidence: Evidence


async def prove_trained(bench: Bench, order: Order, recipe: Qat, made: Made, *, name: str, until: float) -> Proven:
    """Measure float32, bfloat16, the start and the trained one on the same rows, and take the better of the last two.

    Where that is the start, all is measured once more with the start as the variant, beside what was trained: what is
    published is what the report's first numbers are about. Where no step was better than the start, there is nothing to
    compare, and the start alone is measured.
    """
    trained = made.trained
    if trained is None:
        raise ValueError("an artifact that was not trained is to be proven as if it was")
    began = bench.job.percent
    half = began + _FIRST_SHARE * (until - began)
    if (choice := untrained(trained.outcome)) is not None:
        published = _of_start(made, trained)
        measured = await measure(bench, order, _form(name, published), until=half)
    else:
        published, measured, choice = await _better(bench, order, recipe, made, name=name, until=half)
    evidence = await examine(bench, order, measured, sense=True, until=until)
    training = Training(
        outcome=trained.outcome,
        rows=trained.rows,
        held_out=trained.held_out,
        returned=choice.returned,
        choice=choice.why,
    )
    return Proven(made=_with_notes(published, training), evidence=replace(evidence, training=training))


async def _better(
    bench: Bench, order: Order, recipe: Qat, made: Made, *, name: str, until: float
) -> tuple[Made, Measured, Choice]:
    """Measure what was trained, and the start as the variant where that is better; return what is to be published."""
    if made.trained is None:
        raise ValueError("an artifact that was not trained is to be compared with its start")
    first = bench.job.percent + _FIRST_SHARE * (until - bench.job.percent)
    measured, choice = await _tried(bench, order, recipe, made, name=name, until=first)
    if choice.returned == "trained" and measured is not None:
        return made, measured, choice
    start = _of_start(made, made.trained)
    others = [_form(PTQ, start)] + ([_form(TRAINED, made)] if measured is not None else [])
    again = await measure(bench, order, _form(name, start), others=tuple(others), until=until)
    return start, again, choice


async def _tried(
    bench: Bench, order: Order, recipe: Qat, made: Made, *, name: str, until: float
) -> tuple[Measured | None, Choice]:
    """Measure what was trained beside its start; None for one that does not run.

    Raises:
        DatasetUnfit: the rows score nothing.
    """
    if made.trained is None:
        raise ValueError("an artifact that was not trained is to be proven as if it was")
    start = _form(PTQ, made.trained.start)
    try:
        measured = await measure(bench, order, _form(name, made), others=(start,), until=until)
    except (DatasetUnfit, SandboxUnavailable):
        raise
    except JobFailure as failure:
        return None, unmeasured(failure)
    if isinstance(measured.failure, DatasetUnfit):
        return measured, Choice(returned="trained", why="The evaluation rows score nothing.")
    if measured.score is None:
        return None, unmeasured(measured.failure or JobFailure("it was not scored."))
    return measured, choose(measured.score, recipe, variant=name)


def _form(name: str, made: Made) -> Form:
    return Form(name=name, artifact=made.path, execution=made.result.execution)


def _of_start(made: Made, trained: Trained) -> Made:
    """Return the start as what is published, with what else the training has to say."""
    notes = tuple(note for note in made.result.notes if note not in trained.start.result.notes)
    result = replace(trained.start.result, notes=(*trained.start.result.notes, *notes))
    return replace(trained.start, result=result, trained=trained)


def _with_notes(made: Made, training: Training) -> Made:
    told = [training.outcome.reason] if training.outcome.reason else []
    told += [training.choice] if training.returned == "start" else []
    return replace(made, result=replace(made.result, notes=(*told, *made.result.notes)))
