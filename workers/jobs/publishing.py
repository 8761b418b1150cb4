"""From a measured artifact in the scratch folder to a published variant, or to findings kept with a job that failed."""

from dataclasses import replace
from datetime import UTC, datetime

from app.domain.errors import JobFailure
from app.domain.evidence import Diagnosis
from app.domain.names import Reference
from app.domain.recipes import PtqDynamic, Single
from app.domain.reports import Report
from app.domain.variants import FLOAT32, Execution, Variant
from workers.jobs import refusals
from workers.jobs.bench import Bench
from workers.jobs.examining import measure_checks
from workers.jobs.lookup import Order
from workers.jobs.reporting import Evidence, make_report
from workers.jobs.transforming import Made, bring_float32
from workers.outputs import output_path
from workers.stage_records.measuring import Form


def variant_of(bench: Bench, order: Order, recipe: Single, made: Made, *, name: str) -> Variant:
    """Return the record of what was made; how many rows it may answer at once is known once it is measured."""
    return Variant(
        model=order.model.name,
        version=order.model.version,
        name=name,
        artifact=made.artifact,
        execution=made.result.execution,
        signature=order.float32.signature,
        recipe=recipe,
        job=bench.job.id,
        created_at=datetime.now(UTC),
    )


def batch_limit(evidence: Evidence, recipe: Single) -> int | None:
    """Return 1 for a variant whose answer to a row depends on the rows beside it; None for no limit of its own.

    Where that was not measured, one scale for a whole batch of activations says enough.
    """
    seen = evidence.score.invariance if evidence.score else None
    if seen is None:
        return 1 if isinstance(recipe, PtqDynamic) and recipe.toolchain == "ort" else None
    return None if seen.invariant else 1


def report_of(variant: Variant, evidence: Evidence, order: Order, made: Made) -> Report:
    """Return the report, with what the toolchain and the engine left to say."""
    fallback = refusals.fallback_note(variant.recipe, evidence.costs.receipt) if variant.recipe else None
    notes = (*made.result.notes, *([fallback] if fallback else []))
    return make_report(variant, evidence, float32=order.float32, made_with=made.result.libraries, notes=notes)


async def publish_or_refuse(bench: Bench, order: Order, variant: Variant, made: Made, evidence: Evidence) -> str:
    """Publish what was measured and return its name, or keep the findings with the job.

    Raises:
        JobFailure: it is not worth publishing.
    """
    report = report_of(variant, evidence, order, made)
    async with bench.step("publishing", until=100):
        why = evidence.failure or refusals.why(variant, report, order.float32)
        if why is not None:
            raise await refuse(bench, why, report)
        return await publish(bench, variant, report, path=made.path)


async def published_before(bench: Bench) -> str | None:
    """Return what an earlier attempt at this job published before its worker was lost; None if it came to nothing."""
    model = Reference.parse(bench.job.model or "")
    published = await bench.workshop.variants.list(model.name, model.version or 0)
    return next((variant.name for variant in published if variant.job == bench.job.id), None)


async def refuse(bench: Bench, failure: JobFailure, report: Report) -> JobFailure:
    """Keep what was measured with the job that fails; return why it does."""
    await bench.workshop.history.keep_report(bench.job.id, report)
    return failure


async def refuse_unmeasured(bench: Bench, failure: JobFailure, order: Order) -> JobFailure:
    """Keep with the job what is known although there is no variant: float32's numbers, a look at the rows, and why."""
    form = Form(name=FLOAT32, artifact=await bring_float32(bench, order), execution=Execution())
    calibration, evaluation = order.calibration, order.evaluation
    check = await measure_checks(
        bench, (form,), order.model, calibration=calibration, evaluation=evaluation, until=bench.job.percent
    )
    known = await bench.workshop.variants.report(order.float32)
    report = replace(
        known,
        calibration=calibration.use if calibration else None,
        findings=check.findings,
        diagnosis=(Diagnosis(question="Why did it not convert?", answer=(failure.message,), next=()),),
        notes=(failure.message, *known.notes),
        created_at=datetime.now(UTC),
    )
    return await refuse(bench, failure, report)


async def publish(bench: Bench, variant: Variant, report: Report, *, path: str) -> str:
    """Publish under the job's name, or the variant's own with a number behind it; return the name.

    Args:
        path: of the artifact, relative to the scratch folder.
    """
    variants = bench.workshop.variants
    writes = variants.publish if bench.job.variant else variants.publish_numbered
    with output_path(bench.scratch, path).open("rb") as file:
        published = await writes(variant, artifact=file, report=report)
    return published.name
