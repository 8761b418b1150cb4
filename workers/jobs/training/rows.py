"""Which rows train, and which of them choose the step instead: never one that scores."""

from dataclasses import dataclass
from math import floor

from app.domain.datasets import DatasetManifest
from app.domain.errors import DatasetUnfit
from app.domain.recipes import Qat
from app.domain.reports import Report
from app.domain.teaching import TAKES, has_labels
from workers.jobs.rows import Chosen, calibrated_by, choose_calibration, choose_evaluation, chosen, same, sample

_SCORING_SHARE = 4
"""Without an evaluation dataset, a quarter of the rows scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRows:
    """The rows of a job that trains.

    Attributes:
        training: those that train.
        held_out: those that choose the start and the step.
    """

    calibration: Chosen
    training: Chosen
    held_out: Chosen
    evaluation: Chosen


def choose_rows(
    recipe: Qat,
    *,
    calibration: DatasetManifest | None,
    training: DatasetManifest,
    evaluation: DatasetManifest | None,
) -> TrainingRows:
    """Part what a job names. Rows that calibrate are rows that train, unless another dataset calibrates.

    Raises:
        DatasetUnfit: what trains is what scores, or there are too few rows.
    """
    if evaluation is not None and same(training, evaluation):
        raise DatasetUnfit(
            f"Datasets {training.name!r} and {evaluation.name!r} are the same file, and rows that train never score: "
            "name another one for evaluation."
        )
    alone = calibration is None or same(calibration, training)
    train, held_out = choose_training(training, recipe, spare=evaluation is None and alone)
    if calibration is None or alone:
        calibrate = _calibrating(train, recipe)
    else:
        calibrate = choose_calibration(
            calibration, rows=recipe.calibration_rows, seed=recipe.seed, hold_out=evaluation is None
        )
    scoring = evaluation or calibration or training
    score = choose_evaluation(scoring, calibration=calibrate, training=(train, held_out), given=evaluation is not None)
    return TrainingRows(calibration=calibrate, training=train, held_out=held_out, evaluation=score)


def check_labels(recipe: Qat, dataset: DatasetManifest) -> None:
    """Check that the rows that train have the labels of the loss; whether they fit the model, only training tells.

    Raises:
        DatasetUnfit: they have not.
    """
    if not has_labels(recipe, dataset.label_kind):
        raise DatasetUnfit(
            f"The loss {recipe.loss!r} needs labels of the kind {TAKES[recipe.loss][0]!r}, and those of dataset "
            f"{dataset.name!r} are {dataset.label_kind!r}: send others, or take 'distillation', which needs none."
        )


def choose_training(dataset: DatasetManifest, recipe: Qat, *, spare: bool) -> tuple[Chosen, Chosen]:
    """Return the rows of a dataset that train, and those held out.

    Args:
        spare: leave a quarter of the dataset out of both, to score with.

    Raises:
        DatasetUnfit: there are fewer that train than the recipe's batch has.
    """
    rows = tuple(range(dataset.rows))
    if spare:
        rows = sample(rows, dataset.rows - max(1, dataset.rows // _SCORING_SHARE), seed=recipe.seed)
    return part(chosen(dataset, rows, source="given", seed=None), recipe)


def part(rows: Chosen, recipe: Qat) -> tuple[Chosen, Chosen]:
    """Hold a part of some rows out of training, picked by the recipe's seed.

    Raises:
        DatasetUnfit: there are fewer that train than the recipe's batch has.
    """
    held = sample(rows.rows, max(1, floor(len(rows.rows) * recipe.held_out)), seed=recipe.seed)
    train = tuple(sorted(set(rows.rows) - set(held)))
    if len(train) < recipe.batch_size:
        raise DatasetUnfit(
            f"Of the {rows.dataset.rows} rows of dataset {rows.dataset.name!r} {len(train)} are left to train, fewer "
            f"than a batch of {recipe.batch_size}: send more rows, or take a smaller batch_size."
        )
    return (
        chosen(rows.dataset, train, source="given", seed=None),
        chosen(rows.dataset, held, source="held_out", seed=recipe.seed),
    )


def together(training: Chosen, held_out: Chosen) -> Chosen:
    """Return all rows that had a say in training."""
    return chosen(training.dataset, tuple(sorted((*training.rows, *held_out.rows))), source="given", seed=None)


def learnt_by(report: Report, dataset: DatasetManifest) -> Chosen | None:
    """Return the rows of a dataset that a variant has learnt from, by its report; None if it was another dataset."""
    recipe, training = report.recipe, report.training
    if not isinstance(recipe, Qat) or training is None or training.rows.dataset != f"{dataset.name}:{dataset.version}":
        return calibrated_by(report, dataset)
    for spare in (False, True):  # whichever it was, its rows have the recorded hash
        train, held_out = choose_training(dataset, recipe, spare=spare)
        if train.use.sha256 == training.rows.sha256:
            return together(train, held_out)
    return calibrated_by(report, dataset)  # in a search those that calibrated trained, too


def _calibrating(training: Chosen, recipe: Qat) -> Chosen:
    rows = sample(training.rows, recipe.calibration_rows, seed=recipe.seed)
    return chosen(training.dataset, rows, source="given", seed=recipe.seed)
