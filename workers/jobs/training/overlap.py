"""Whether rows that train are among those that score, by what is in them, before any time is spent on training."""

from app.domain.errors import DatasetUnfit
from app.domain.evidence import Finding
from workers.jobs.bench import Bench
from workers.jobs.files import bring_rows
from workers.jobs.lookup import Order
from workers.jobs.training.rows import together
from workers.stage_records.training import OverlapResult, OverlapSpec

MOST_SHARED = 0.01
"""Share of the evaluation rows that may equal training rows: collections have a few doubles of their own, which move a
score by less than its interval; more means that the same rows were sent twice."""


async def check_overlap(bench: Bench, order: Order, *, until: float) -> tuple[Finding, ...]:
    """Return a finding if a few evaluation rows train.

    Raises:
        DatasetUnfit: more than a few do.
    """
    if order.training is None or order.held_out is None:
        return ()
    async with bench.step("looking for training rows among those that score", until=until):
        preprocessing = order.model.preprocessing
        learnt = together(order.training, order.held_out)
        spec = OverlapSpec(
            training=await bring_rows(bench, learnt, preprocessing=preprocessing),
            evaluation=await bring_rows(bench, order.evaluation, preprocessing=preprocessing),
        )
        found = await bench.stage("overlap", spec, gives=OverlapResult, until=until)
    return judged(found, rows=len(order.evaluation.rows))


def judged(found: OverlapResult, *, rows: int) -> tuple[Finding, ...]:
    """Say what so many shared rows among `rows` that score mean.

    Raises:
        DatasetUnfit: they are too many.
    """
    if not found.count:
        return ()
    told = f"{found.count} of the {rows} evaluation rows are training rows"
    if found.count > MOST_SHARED * rows:
        named = ", ".join(map(str, found.rows[:5]))
        raise DatasetUnfit(
            f"{told} by what is in them ({named}{', …' if found.count > len(found.rows[:5]) else ''}), and at most "
            f"{MOST_SHARED:.0%} may be: rows that train never score, so send others."
        )
    message = f"{told} by what is in them, so the score may flatter a little: send other rows."
    return (Finding(code="training_in_evaluation", severity="warning", message=message, rows=found.rows),)
