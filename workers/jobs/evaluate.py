"""Evaluate jobs: measure a published variant again, on other rows or another machine."""

from app.domain.errors import JobFailure
from app.domain.names import Reference
from app.domain.variants import FLOAT32
from workers.jobs.bench import Bench
from workers.jobs.files import bring_artifact
from workers.jobs.lookup import find_dataset
from workers.jobs.measuring import forms_beside, measure_costs, try_score
from workers.jobs.reporting import Evidence, make_report
from workers.jobs.rows import choose_evaluation
from workers.jobs.training.rows import learnt_by
from workers.stage_records.measuring import Form


async def evaluate(bench: Bench) -> str | None:
    """Measure the variant on every row of the dataset that it has not learnt from, and keep the report with the job."""
    job, workshop = bench.job, bench.workshop
    async with bench.step("fetching the model", until=5):
        model = (await workshop.models.resolve(Reference.parse(job.model or ""))).imported()
        float32 = await workshop.variants.get(model.name, model.version, FLOAT32)
        variant = await workshop.variants.get(model.name, model.version, job.variant or FLOAT32)
        if job.evaluation is None:
            raise JobFailure("Nothing can be measured without rows: name an evaluation dataset.")
        dataset = await find_dataset(job.evaluation, model, workshop)
        parent = await bring_artifact(bench, float32)
        form = None
        if variant.name != FLOAT32:
            artifact = await bring_artifact(bench, variant)
            form = Form(name=variant.name, artifact=artifact, execution=variant.execution)
    forms = forms_beside(parent, variant=form)
    chosen = choose_evaluation(
        dataset, calibration=learnt_by(await workshop.variants.report(variant), dataset), given=True
    )
    costs = await measure_costs(bench, forms, variant.signature, until=50)
    score, failure = await try_score(bench, costs.forms, model, evaluation=chosen, until=95)
    async with bench.step("publishing", until=100):
        evidence = Evidence(costs=costs, score=score, evaluation=chosen.use, failure=failure)
        report = make_report(variant, evidence, float32=float32)
        await workshop.history.keep_report(job.id, report)
    if failure is not None:
        raise failure
    return variant.name
