"""Quantize jobs: make a variant, measure it beside its float parent, and publish it only if it is worth it."""

from dataclasses import dataclass
from datetime import UTC, datetime

from app.domain.datasets import DatasetManifest
from app.domain.errors import LargerThanFloat, NoInt8Kernels, RecipeInvalid
from app.domain.fit import check_fit
from app.domain.models import ModelManifest
from app.domain.names import Reference
from app.domain.recipes import Auto, PtqStatic, Single, WeightOnly
from app.domain.reports import Kernels, Report
from app.domain.variants import FLOAT32, Variant
from workers.jobs.bench import Bench, Workshop
from workers.jobs.files import bring_artifact, bring_rows, inspect
from workers.jobs.measuring import forms_beside, make_report, measure_costs, measure_score
from workers.jobs.rows import Chosen, choose_calibration, choose_evaluation
from workers.sandbox import output_path
from workers.stages import Form, TransformResult, TransformSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the job asks for, with everything it names looked up.

    Attributes:
        parent: path of the float32 artifact in the scratch folder.
    """

    model: ModelManifest
    float32: Variant
    parent: str
    recipe: Single
    calibration: Chosen | None
    evaluation: Chosen


async def quantize(bench: Bench) -> str:
    """Make, measure and publish the variant; return its name."""
    async with bench.step("fetching the model", until=5):
        order = await _look_up(bench)
    made = await _transform(bench, order)
    variant = _variant(bench, order, made)
    _refuse_larger(variant, order.float32)
    report = await _measure(bench, order, variant, made)
    _refuse_without_int8(order.recipe, report.kernels[variant.name])
    variants = bench.workshop.variants
    publish = variants.publish if bench.job.variant else variants.publish_numbered
    async with bench.step("publishing", until=100):
        with output_path(bench.scratch, made.artifact).open("rb") as file:
            published = await publish(variant, artifact=file, report=report)
    return published.name


async def find_dataset(reference: str, model: ModelManifest, workshop: Workshop) -> DatasetManifest:
    """Return the dataset a job names.

    Raises:
        SignatureMismatch: its rows cannot be used with this model; or what its import failed with.
    """
    dataset = (await workshop.datasets.resolve(Reference.parse(reference))).imported()
    check_fit(dataset, model)
    return dataset


async def _look_up(bench: Bench) -> Order:
    job, workshop = bench.job, bench.workshop
    if job.recipe is None or isinstance(job.recipe, Auto):
        raise RecipeInvalid(f"Job {job.id} has no recipe: send one with the job.")
    model = (await workshop.models.resolve(Reference.parse(job.model or ""))).imported()
    float32 = await workshop.variants.get(model.name, model.version, FLOAT32)
    scoring = job.evaluation or job.calibration
    if scoring is None:
        raise RecipeInvalid("Nothing can be measured without rows: name a calibration or an evaluation dataset.")
    calibration = await _calibration(bench, model, job.recipe)
    evaluation = await find_dataset(scoring, model, workshop)
    return Order(
        model=model,
        float32=float32,
        parent=await bring_artifact(bench, float32),
        recipe=job.recipe,
        calibration=calibration,
        evaluation=choose_evaluation(evaluation, calibration=calibration, given=job.evaluation is not None),
    )


async def _calibration(bench: Bench, model: ModelManifest, recipe: Single) -> Chosen | None:
    if not recipe.needs_calibration or not isinstance(recipe, (PtqStatic, WeightOnly)):
        return None
    if bench.job.calibration is None:
        raise RecipeInvalid(f"{recipe.technique} learns from rows: name a calibration dataset.")
    dataset = await find_dataset(bench.job.calibration, model, bench.workshop)
    return choose_calibration(
        dataset, rows=recipe.calibration_rows, seed=recipe.seed, hold_out=bench.job.evaluation is None
    )


async def _transform(bench: Bench, order: Order) -> TransformResult:
    async with bench.step("quantizing", until=45):
        chosen = order.calibration
        rows = await bring_rows(bench, chosen, preprocessing=order.model.preprocessing) if chosen else None
        spec = TransformSpec(
            artifact=order.parent, signature=order.float32.signature, recipe=order.recipe, calibration=rows
        )
        return await bench.stage("transform", spec, gives=TransformResult, until=45)


def _variant(bench: Bench, order: Order, made: TransformResult) -> Variant:
    return Variant(
        model=order.model.name,
        version=order.model.version,
        name=bench.job.variant or order.recipe.default_name,
        artifact=inspect(bench, made.artifact),
        execution=made.execution,
        signature=order.float32.signature,
        recipe=order.recipe,
        job=bench.job.id,
        created_at=datetime.now(UTC),
    )


async def _measure(bench: Bench, order: Order, variant: Variant, made: TransformResult) -> Report:
    form = Form(name=variant.name, artifact=made.artifact, execution=variant.execution)
    forms = forms_beside(order.parent, variant=form)
    costs = await measure_costs(bench, forms, variant.signature, until=70)
    score = await measure_score(bench, costs.forms, order.model, evaluation=order.evaluation, until=95)
    return make_report(
        variant,
        float32=order.float32,
        costs=costs,
        score=score,
        calibration=order.calibration.use if order.calibration else None,
        evaluation=order.evaluation.use,
        made_with=made.libraries,
    )


def _refuse_larger(variant: Variant, float32: Variant) -> None:
    size, limit = variant.artifact.size_bytes, float32.artifact.size_bytes
    if size >= limit:
        raise LargerThanFloat(
            f"The variant has {size} bytes and its float32 parent {limit}: the model is too small to gain from "
            f"{variant.name}, so nothing was published."
        )


def _refuse_without_int8(recipe: Single, kernels: Kernels) -> None:
    if recipe.expects_int8 and kernels.int8_layers == 0:
        ran = ", ".join(sorted({layer.precision for layer in kernels.layers})) or "nothing"
        raise NoInt8Kernels(
            f"The engine ran none of the {kernels.float_layers} compute layers in int8 (it ran {ran}): "
            "leave fewer layers in float, or use a model with convolutions or matrix products."
        )
