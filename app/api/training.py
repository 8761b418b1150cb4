"""What a job that trains names, rows and a teacher: checked as far as the imports tell, before any work starts."""

from dataclasses import replace
from itertools import zip_longest
from math import floor

from app.api.dependencies import Services
from app.api.imports import mend
from app.api.references import plain_reference
from app.catalogue.shelf import Entry, Manifest
from app.domain.datasets import DatasetManifest
from app.domain.errors import DatasetUnfit, RecipeInvalid, RequestInvalid, SignatureMismatch
from app.domain.metrics import Labels
from app.domain.models import ModelManifest
from app.domain.recipes import Qat, Recipe
from app.domain.teaching import has_labels, pair

_NEEDS = {"cross_entropy": "labels that are classes", "mse": "labels that are real numbers"}
_HAS: dict[Labels, str] = {
    "class": "classes",
    "class_map": "maps of classes",
    "values": "real numbers",
    "none": "no labels",
}


def check_training_rows(recipe: Recipe, *, calibration: bool, training: bool) -> None:
    """Check that a recipe that trains gets rows to train on, and that no other one does.

    Raises:
        RecipeInvalid: it is not so.
    """
    if training and not isinstance(recipe, Qat):
        raise RecipeInvalid(f"The technique {recipe.technique} does not train: leave training out, or take qat.")
    if isinstance(recipe, Qat) and not (training or calibration):
        raise RecipeInvalid(f"The technique {recipe.technique} needs rows to train on: send a training dataset.")


async def find_teacher(services: Services, recipe: Recipe) -> Entry[ModelManifest] | None:
    """Return the model that a recipe names as the teacher; None where it names none.

    Raises:
        NameInvalid, ModelNotFound: there is none of that name.
    """
    if not isinstance(recipe, Qat) or recipe.teacher is None:
        return None
    teacher = await services.models.resolve(plain_reference(recipe.teacher))
    await mend(services, teacher, subject="model")
    return teacher


def with_teacher(recipe: Recipe, teacher: Entry[ModelManifest] | None) -> Recipe:
    """Return the recipe with its teacher's version."""
    if teacher is None or not isinstance(recipe, Qat):
        return recipe
    return replace(recipe, teacher=_label(teacher))


def check_training(recipe: Qat, *, training: Entry[DatasetManifest], evaluation: Entry[DatasetManifest] | None) -> None:
    """Check the rows that train: that none of them scores, their labels, and that they fill a batch.

    Raises:
        RequestInvalid: they are the rows that score.
        DatasetUnfit: they lack the labels of the loss, or are fewer than a batch.
    """
    if evaluation is not None:
        _check_apart(training, evaluation)
    if training.manifest is not None:
        _check_labels(recipe, training.manifest)
        _check_batch(recipe, training.manifest)


def check_teacher(teacher: Entry[ModelManifest], model: Entry[ModelManifest]) -> None:
    """Check that a teacher can answer the model's rows, and answers what the model does.

    Raises:
        SignatureMismatch: its inputs, its outputs or its classes are other ones.
    """
    _check_classes(teacher, model)
    if teacher.manifest is None or model.manifest is None:
        return
    pair(teacher.manifest.signature, model.manifest.signature, teacher=_label(teacher), model=_label(model))


def _check_apart(training: Entry[DatasetManifest], evaluation: Entry[DatasetManifest]) -> None:
    ours, theirs = _label(training), _label(evaluation)
    advice = "rows that train never score, so name another one for evaluation."
    if ours == theirs:
        raise RequestInvalid(f"Dataset {ours!r} cannot both train and evaluate: {advice}")
    if training.upload.sha256 == evaluation.upload.sha256:
        raise RequestInvalid(
            f"Datasets {ours!r} and {theirs!r} are the same file (SHA-256 {training.upload.sha256[:12]}…): {advice}"
        )


def _check_labels(recipe: Qat, dataset: DatasetManifest) -> None:
    if not has_labels(recipe, dataset.label_kind):
        raise DatasetUnfit(
            f"The loss {recipe.loss!r} needs {_NEEDS[recipe.loss]}; training dataset {dataset.name!r} has "
            f"{_HAS[dataset.label_kind]}: send others, or take the loss 'distillation', which needs none."
        )


def _check_batch(recipe: Qat, dataset: DatasetManifest) -> None:
    """Count what surely does not train; rows that a job without an evaluation dataset keeps to score come on top."""
    train = dataset.rows - max(1, floor(dataset.rows * recipe.held_out))
    if train < 1:
        raise DatasetUnfit(
            f"Training dataset {dataset.name!r} has {dataset.rows} row, which cannot both train and choose the best "
            "step: send more rows."
        )
    if recipe.batch_size > train:
        raise DatasetUnfit(
            f"A batch of {recipe.batch_size} rows is larger than the {train} of training dataset {dataset.name!r} that "
            f"train, {dataset.rows} without those held out: take a batch_size of at most {train}, or send more rows."
        )


def _check_classes(teacher: Entry[ModelManifest], model: Entry[ModelManifest]) -> None:
    """Check the classes' names where both models have them: in another order, training would teach what is wrong."""
    for index, (theirs, ours) in enumerate(zip_longest(teacher.upload.labels or (), model.upload.labels or ())):
        if teacher.upload.labels is None or model.upload.labels is None:
            return
        if theirs is None or ours is None or theirs.casefold() != ours.casefold():
            raise SignatureMismatch(
                f"Teacher {_label(teacher)} has other classes than {_label(model)}: number {index} is "
                f"{theirs!r}, not {ours!r}: name a teacher with the same classes in the same order."
            )


def _label(entry: Entry[Manifest]) -> str:
    return f"{entry.upload.name}:{entry.upload.version}"
