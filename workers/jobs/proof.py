"""Everything a variant has to show before it is published, in one go: costs, score, checks, single layers."""

from dataclasses import dataclass

from app.domain.errors import JobFailure
from app.domain.evidence import LayerSensitivity
from workers.jobs.bench import Bench
from workers.jobs.examining import measure_checks, measure_sensitivity
from workers.jobs.lookup import Order
from workers.jobs.measuring import Costs, forms_beside, measure_costs, try_score
from workers.jobs.reporting import Evidence
from workers.jobs.rows import Chosen
from workers.jobs.transforming import bring_float32
from workers.stage_records.measuring import Form, ScoreResult

_MEASURING_SHARE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a form costs and how it scores.

    Attributes:
        failure: why there is no score.
    """

    costs: Costs
    score: ScoreResult | None
    failure: JobFailure | None


async def prove(
    bench: Bench,
    order: Order,
    form: Form,
    *,
    others: tuple[Form, ...] = (),
    sense: bool,
    selection: Chosen | None = None,
    until: float,
) -> Evidence:
    """Measure a form beside float32 and bfloat16 on the order's evaluation rows.

    Args:
        others: forms to set beside it, too.
        sense: whether to look at single layers as well.
        selection: rows that chose the form in a search.

    Returns:
        All that could be measured; `failure` says why there is no score.
    """
    middle = bench.job.percent + _MEASURING_SHARE * (until - bench.job.percent)
    measured = await measure(bench, order, form, others=others, until=middle)
    return await examine(bench, order, measured, sense=sense, selection=selection, until=until)


async def measure(bench: Bench, order: Order, form: Form, *, others: tuple[Form, ...] = (), until: float) -> Measured:
    """Time, weigh and score a form beside float32 and bfloat16."""
    forms = forms_beside(await bring_float32(bench, order), variant=form, others=others)
    half = (bench.job.percent + until) / 2
    costs = await measure_costs(bench, forms, order.float32.signature, until=half)
    score, failure = await try_score(bench, costs.forms, order.model, evaluation=order.evaluation, until=until)
    return Measured(costs=costs, score=score, failure=failure)


async def examine(
    bench: Bench, order: Order, measured: Measured, *, sense: bool, selection: Chosen | None = None, until: float
) -> Evidence:
    """Look at the rows, and at single layers if asked, and put everything together."""
    costs = measured.costs
    both = (costs.forms[0], costs.forms[-1])
    check = await measure_checks(
        bench,
        both,
        order.model,
        calibration=order.calibration,
        evaluation=order.evaluation,
        selection=selection,
        until=(bench.job.percent + until) / 2,
    )
    sensitivity: tuple[LayerSensitivity, ...] = ()
    if sense:
        sensitivity = await measure_sensitivity(
            bench, both, order.model, rows=order.evaluation, receipt=costs.receipt, until=until
        )
    return Evidence(
        costs=costs,
        score=measured.score,
        check=check,
        sensitivity=sensitivity,
        calibration=order.calibration.use if order.calibration else None,
        evaluation=order.evaluation.use,
        failure=measured.failure,
    )
