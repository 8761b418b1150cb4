"""Asking for work: what a job is to do, with every reference resolved, after checking that it can be done at all."""

from dataclasses import dataclass
from datetime import UTC, datetime

from app.api.dependencies import Services
from app.api.imports import mend
from app.api.references import plain_reference
from app.api.training import check_teacher, check_training, check_training_rows, find_teacher, with_teacher
from app.catalogue.shelf import Entry
from app.domain.datasets import DatasetManifest
from app.domain.errors import NameTaken, RecipeInvalid, RequestInvalid, VariantNotFound
from app.domain.fit import check_fit, check_metric
from app.domain.jobs import Job, JobKind
from app.domain.models import ModelFormat, ModelManifest, ReadyState
from app.domain.names import check_name
from app.domain.recipes import FROM_UPLOAD, Auto, Qat, Recipe
from app.domain.training import check_variant_name
from app.domain.variants import FLOAT32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a job works on; an entry may still be importing.

    Attributes:
        teacher: the model that a recipe names, where it does.
    """

    model: Entry[ModelManifest]
    calibration: Entry[DatasetManifest] | None = None
    evaluation: Entry[DatasetManifest] | None = None
    training: Entry[DatasetManifest] | None = None
    teacher: Entry[ModelManifest] | None = None

    def after(self) -> list[str]:
        """Return the import jobs that have to end first, each once.

        Raises:
            ModelNotReady: an import has failed.
            SignatureMismatch: rows do not fit the model.
        """
        entries: list[Entry[ModelManifest] | Entry[DatasetManifest]] = [self.model, *self._datasets()]
        if self.teacher is not None:
            entries.append(self.teacher)
        for entry in entries:
            if entry.state is ReadyState.FAILED:
                entry.ready()
        for dataset in self._datasets():
            if dataset.manifest is not None and self.model.manifest is not None:
                check_fit(dataset.manifest, self.model.manifest)
        waited = (entry.upload.job for entry in entries if entry.state is ReadyState.IMPORTING)
        return list(dict.fromkeys(waited))

    def _datasets(self) -> list[Entry[DatasetManifest]]:
        return [entry for entry in (self.calibration, self.evaluation, self.training) if entry is not None]


async def order_quantize(
    services: Services,
    job: str,
    *,
    model: str,
    calibration: str | None,
    evaluation: str | None,
    training: str | None,
    recipe: Recipe,
    variant: str | None,
) -> tuple[Job, list[str]]:
    """Return a quantize job and the jobs it waits for.

    Raises:
        NotFound, ModelNotReady, SignatureMismatch, RecipeInvalid, DatasetUnfit, NameTaken: it could not be done.
    """
    check_rows(
        recipe,
        calibration=calibration is not None,
        evaluation=evaluation is not None,
        training=training is not None,
    )
    sources = await _sources(
        services, model=model, calibration=calibration, evaluation=evaluation, training=training, recipe=recipe
    )
    after = sources.after()
    check_possible(recipe, sources)
    if isinstance(recipe, Qat | Auto):
        check_variant_name(variant)
    if variant is not None:
        await _check_free(services, sources.model, variant)
    return quantize_job(job, sources, recipe=recipe, variant=variant), after


async def order_evaluate(
    services: Services, job: str, *, model: str, variant: str, evaluation: str
) -> tuple[Job, list[str]]:
    """Return an evaluate job and the jobs it waits for.

    Raises:
        NotFound, ModelNotReady, SignatureMismatch: it could not be done.
    """
    sources = await _sources(services, model=model, evaluation=evaluation)
    upload = sources.model.ready().upload
    await services.variants.get(upload.name, upload.version, check_name(variant, of="variant"))
    record = Job(
        id=job,
        kind=JobKind.EVALUATE,
        created_at=datetime.now(UTC),
        model=_label(sources.model),
        evaluation=_label(sources.evaluation),
        variant=variant,
    )
    return record, sources.after()


def quantize_job(job: str, sources: Sources, *, recipe: Recipe, variant: str | None) -> Job:
    """Return the job's record, with every reference resolved to a version, the recipe's teacher too."""
    return Job(
        id=job,
        kind=JobKind.QUANTIZE,
        created_at=datetime.now(UTC),
        model=_label(sources.model),
        calibration=_label(sources.calibration),
        evaluation=_label(sources.evaluation),
        training=_label(sources.training),
        recipe=with_teacher(recipe, sources.teacher),
        variant=variant,
    )


def check_rows(recipe: Recipe, *, calibration: bool, evaluation: bool, training: bool) -> None:
    """Check that a recipe gets the rows it needs.

    Raises:
        RecipeInvalid: it does not.
    """
    check_training_rows(recipe, calibration=calibration, training=training)
    if not (calibration or evaluation or training):
        raise RecipeInvalid(
            f"A variant made by {recipe.technique} is measured on rows: send a calibration or an evaluation dataset."
        )
    if recipe.needs_calibration and not (calibration or training):  # what trains can calibrate too
        raise RecipeInvalid(f"The technique {recipe.technique} needs a calibration dataset: send one.")


def check_possible(recipe: Recipe, sources: Sources) -> None:
    """Check what is known of the uploads already: the model's format, the labels, what trains and what teaches.

    Raises:
        RecipeInvalid: the toolchain does not start from such a file.
        DatasetUnfit: rows lack the labels of the budget's metric or of the loss, or are too few.
        RequestInvalid: the rows that train are those that score.
        SignatureMismatch: the teacher does not do what the model does.
    """
    if not isinstance(recipe, Auto) and recipe.toolchain in FROM_UPLOAD:
        _check_exported(sources.model, toolchain=recipe.toolchain)
    scoring = sources.evaluation or sources.calibration
    if isinstance(recipe, Auto) and recipe.budget.metric is not None and scoring and scoring.manifest is not None:
        check_metric(recipe.budget.metric, scoring.manifest)
    training = sources.training or sources.calibration
    if isinstance(recipe, Qat) and training is not None:
        check_training(recipe, training=training, evaluation=sources.evaluation)
    if sources.teacher is not None:
        check_teacher(sources.teacher, sources.model)


def _check_exported(model: Entry[ModelManifest], *, toolchain: str) -> None:
    """Check that a model is a `.pt2`: by its content once it is imported, by its name before."""
    known = model.manifest.format if model.manifest is not None else _by_name(model.upload.file)
    if known not in (None, ModelFormat.TORCH_EXPORT):
        raise RecipeInvalid(
            f"The toolchain {toolchain!r} starts from a torch.export file (.pt2), but {_label(model)} was uploaded as "
            f"{model.upload.file[:80]!r}: take nncf or ort, or upload the .pt2."
        )


def _by_name(file: str) -> ModelFormat | None:
    return ModelFormat.ONNX if file.lower().endswith(".onnx") else None


async def _sources(
    services: Services,
    *,
    model: str,
    evaluation: str | None,
    calibration: str | None = None,
    training: str | None = None,
    recipe: Recipe | None = None,
) -> Sources:
    async def dataset(text: str | None) -> Entry[DatasetManifest] | None:
        if text is None:
            return None
        entry = await services.datasets.resolve(plain_reference(text))
        await mend(services, entry, subject="dataset")
        return entry

    found = await services.models.resolve(plain_reference(model))
    await mend(services, found, subject="model")
    sources = Sources(
        model=found,
        calibration=await dataset(calibration),
        evaluation=await dataset(evaluation),
        training=await dataset(training),
        teacher=None if recipe is None else await find_teacher(services, recipe),
    )
    if sources.calibration is not None and _label(sources.calibration) == _label(sources.evaluation):
        raise RequestInvalid(
            f"Dataset {_label(sources.calibration)!r} cannot both calibrate and evaluate: name another one, or leave "
            "evaluation out, and rows that calibration leaves over score."
        )
    return sources


async def _check_free(services: Services, model: Entry[ModelManifest], variant: str) -> None:
    upload, name = model.upload, check_name(variant, of="variant")
    taken = NameTaken(f"{upload.name}:{upload.version} already has a variant {name!r}: choose another name.")
    if name == FLOAT32:
        raise taken
    try:
        await services.variants.get(upload.name, upload.version, name)
    except VariantNotFound:
        return
    raise taken


def _label(entry: Entry[ModelManifest] | Entry[DatasetManifest] | None) -> str | None:
    return None if entry is None else f"{entry.upload.name}:{entry.upload.version}"
