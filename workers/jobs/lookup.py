"""What a quantize job names, looked up and checked before any work starts."""

from dataclasses import dataclass

from app.domain.datasets import DatasetManifest
from app.domain.errors import RecipeInvalid
from app.domain.fit import check_fit
from app.domain.models import ModelFormat, ModelManifest
from app.domain.names import Reference
from app.domain.recipes import FROM_UPLOAD, Auto, LearnsFromRows, Qat, Recipe
from app.domain.teaching import check_batched, pair
from app.domain.training import check_variant_name
from app.domain.variants import FLOAT32, Variant
from workers.jobs.bench import Bench, Workshop
from workers.jobs.rows import Chosen, choose_calibration, choose_evaluation
from workers.jobs.training.rows import check_labels, choose_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a job asks for, with everything it names looked up.

    Attributes:
        calibration: None where the recipe learns from no rows.
        evaluation: rows that score, none of which calibrates or trains.
        training, held_out: rows that train, and those that choose the step; None where the job itself trains nothing.
        teacher: the float32 form of another model, where the recipe names one.
    """

    model: ModelManifest
    float32: Variant
    calibration: Chosen | None
    evaluation: Chosen
    training: Chosen | None = None
    held_out: Chosen | None = None
    teacher: Variant | None = None


async def look_up(bench: Bench, recipe: Recipe) -> Order:
    """Find model, float parent and rows.

    Raises:
        RecipeInvalid: the recipe needs rows or an upload that are not there.
        SignatureMismatch: rows, or a teacher, cannot be used with this model.
        ToolchainFailed: it is to be trained, and takes one row at a time.
    """
    job, workshop = bench.job, bench.workshop
    model = (await workshop.models.resolve(Reference.parse(job.model or ""))).imported()
    check_upload(recipe, model)
    float32 = await workshop.variants.get(model.name, model.version, FLOAT32)
    if isinstance(recipe, Qat):
        return await _look_up_training(bench, recipe, model, float32)
    scoring = job.evaluation or job.calibration
    if scoring is None:
        raise RecipeInvalid("Nothing can be measured without rows: name a calibration or an evaluation dataset.")
    calibration = await _calibration(bench, model, recipe)
    evaluation = await find_dataset(scoring, model, workshop)
    return Order(
        model=model,
        float32=float32,
        calibration=calibration,
        evaluation=choose_evaluation(evaluation, calibration=calibration, given=job.evaluation is not None),
    )


async def find_dataset(reference: str, model: ModelManifest, workshop: Workshop) -> DatasetManifest:
    """Return the dataset a job names.

    Raises:
        SignatureMismatch: its rows cannot be used with this model; or what its import failed with.
    """
    dataset = (await workshop.datasets.resolve(Reference.parse(reference))).imported()
    check_fit(dataset, model)
    return dataset


def check_upload(recipe: Recipe, model: ModelManifest) -> None:
    """Check that a toolchain which starts from the upload can.

    Raises:
        RecipeInvalid: it cannot.
    """
    if starts_from_upload(recipe) and model.format is not ModelFormat.TORCH_EXPORT:
        toolchain = getattr(recipe, "toolchain", "")
        raise RecipeInvalid(
            f"The toolchain {toolchain!r} starts from a torch.export file, and {model.name}:{model.version} was "
            f"uploaded as {model.format}: take nncf or ort, or upload the model as .pt2."
        )


def starts_from_upload(recipe: Recipe) -> bool:
    """Whether a recipe's toolchain reads the upload itself, and may execute what is in it."""
    return not isinstance(recipe, Auto) and recipe.toolchain in FROM_UPLOAD


async def _look_up_training(bench: Bench, recipe: Qat, model: ModelManifest, float32: Variant) -> Order:
    job, workshop = bench.job, bench.workshop
    check_variant_name(job.variant)
    check_batched(float32.signature)

    async def named(reference: str | None) -> DatasetManifest | None:
        return None if reference is None else await find_dataset(reference, model, workshop)

    calibration, evaluation = await named(job.calibration), await named(job.evaluation)
    training = await named(job.training) or calibration
    if training is None:
        raise RecipeInvalid(f"{recipe.technique} trains on rows: name a training dataset.")
    check_labels(recipe, training)
    rows = choose_rows(recipe, calibration=calibration, training=training, evaluation=evaluation)
    return Order(
        model=model,
        float32=float32,
        calibration=rows.calibration,
        evaluation=rows.evaluation,
        training=rows.training,
        held_out=rows.held_out,
        teacher=await find_teacher(recipe, workshop, float32=float32),
    )


async def find_teacher(recipe: Qat, workshop: Workshop, *, float32: Variant) -> Variant | None:
    """Return the float32 form of the model that a recipe names as the teacher; None where it names none.

    Args:
        float32: of the model that is taught.

    Raises:
        SignatureMismatch: it takes or answers something else.
    """
    if recipe.teacher is None:
        return None
    named = (await workshop.models.resolve(Reference.parse(recipe.teacher))).imported()
    teacher = await workshop.variants.get(named.name, named.version, FLOAT32)
    labels = (f"{each.model}:{each.version}" for each in (teacher, float32))
    pair(teacher.signature, float32.signature, teacher=next(labels), model=next(labels))
    return teacher


async def _calibration(bench: Bench, model: ModelManifest, recipe: Recipe) -> Chosen | None:
    if not recipe.needs_calibration or not isinstance(recipe, LearnsFromRows):
        return None
    if bench.job.calibration is None:
        raise RecipeInvalid(f"{recipe.technique} learns from rows: name a calibration dataset.")
    dataset = await find_dataset(bench.job.calibration, model, bench.workshop)
    return choose_calibration(
        dataset, rows=recipe.calibration_rows, seed=recipe.seed, hold_out=bench.job.evaluation is None
    )
