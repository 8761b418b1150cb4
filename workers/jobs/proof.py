"""Everything a variant has to show before it is published, in one go: costs, score, checks, single layers."""

from app.domain.evidence import LayerSensitivity
from workers.jobs.bench import Bench
from workers.jobs.examining import measure_checks, measure_sensitivity
from workers.jobs.lookup import Order
from workers.jobs.making import bring_float32
from workers.jobs.measuring import forms_beside, measure_costs, try_score
from workers.jobs.reporting import Evidence
from workers.jobs.rows import Chosen
from workers.stages import Form


async def prove(
    bench: Bench, order: Order, form: Form, *, sense: bool, selection: Chosen | None = None, until: float
) -> Evidence:
    """Measure a form beside float32 and bfloat16 on the order's evaluation rows.

    Args:
        sense: whether to look at single layers as well.
        selection: rows that chose the form in a search.

    Returns:
        All that could be measured; `failure` says why there is no score.
    """
    start, signature = bench.job.percent, order.float32.signature

    def at(share: float) -> float:
        return start + share * (until - start)

    forms = forms_beside(await bring_float32(bench, order), variant=form)
    costs = await measure_costs(bench, forms, signature, until=at(0.4))
    score, failure = await try_score(bench, costs.forms, order.model, evaluation=order.evaluation, until=at(0.75))
    both = (costs.forms[0], costs.forms[-1])
    check = await measure_checks(
        bench,
        both,
        order.model,
        calibration=order.calibration,
        evaluation=order.evaluation,
        selection=selection,
        until=at(0.85),
    )
    sensitivity: tuple[LayerSensitivity, ...] = ()
    if sense:
        sensitivity = await measure_sensitivity(
            bench, both, order.model, rows=order.evaluation, receipt=costs.receipt, until=until
        )
    return Evidence(
        costs=costs,
        score=score,
        check=check,
        sensitivity=sensitivity,
        calibration=order.calibration.use if order.calibration else None,
        evaluation=order.evaluation.use,
        failure=failure,
    )
