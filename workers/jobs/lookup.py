"""What a quantize job names, looked up and checked before any work starts."""

from dataclasses import dataclass

from app.domain.datasets import DatasetManifest
from app.domain.errors import RecipeInvalid
from app.domain.fit import check_fit
from app.domain.models import ModelFormat, ModelManifest
from app.domain.names import Reference
from app.domain.recipes import FROM_UPLOAD, Auto, LearnsFromRows, Recipe
from app.domain.variants import FLOAT32, Variant
from workers.jobs.bench import Bench, Workshop
from workers.jobs.rows import Chosen, choose_calibration, choose_evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a job asks for, with everything it names looked up.

    Attributes:
        calibration: None where the recipe learns from no rows.
        evaluation: rows that score, none of which calibrates.
    """

    model: ModelManifest
    float32: Variant
    calibration: Chosen | None
    evaluation: Chosen


async def look_up(bench: Bench, recipe: Recipe) -> Order:
    """Find model, float parent and rows.

    Raises:
        RecipeInvalid: the recipe needs rows or an upload that are not there.
        SignatureMismatch: rows cannot be used with this model.
    """
    job, workshop = bench.job, bench.workshop
    model = (await workshop.models.resolve(Reference.parse(job.model or ""))).imported()
    check_upload(recipe, model)
    float32 = await workshop.variants.get(model.name, model.version, FLOAT32)
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


async def _calibration(bench: Bench, model: ModelManifest, recipe: Recipe) -> Chosen | None:
    if not recipe.needs_calibration or not isinstance(recipe, LearnsFromRows):
        return None
    if bench.job.calibration is None:
        raise RecipeInvalid(f"{recipe.technique} learns from rows: name a calibration dataset.")
    dataset = await find_dataset(bench.job.calibration, model, bench.workshop)
    return choose_calibration(
        dataset, rows=recipe.calibration_rows, seed=recipe.seed, hold_out=bench.job.evaluation is None
    )
