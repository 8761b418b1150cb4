"""Which rows of a dataset calibrate and which score: never the same row for both."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.datasets import DatasetManifest
from app.domain.errors import DatasetUnfit
from app.domain.evidence import DataUse
from app.domain.recipes import LearnsFromRows
from app.domain.reports import Report

LEAST_SPARE = 200
"""How many rows calibration has to leave over for them to choose: fewer tell candidates apart by chance alone."""

MOST_SELECTION = 2000
"""With more, a search would mostly answer rows."""

_HELD_OUT_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Rows of one dataset, ascending, and the line about them in the report."""

    dataset: DatasetManifest
    rows: tuple[int, ...]
    use: DataUse


def choose_calibration(dataset: DatasetManifest, *, rows: int, seed: int, hold_out: bool) -> Chosen:
    """Pick `rows` rows at random, or as many as there are.

    With `hold_out`, at least a quarter of the dataset is left over to score with.

    Raises:
        DatasetUnfit: a single row cannot do both.
    """
    most = dataset.rows - max(1, dataset.rows // _HELD_OUT_SHARE) if hold_out else dataset.rows
    if most < 1:
        raise DatasetUnfit(
            f"Dataset {dataset.name!r} has {dataset.rows} row, which cannot both calibrate and score: "
            "send more rows, or an evaluation dataset."
        )
    picked = random.Random(seed).sample(range(dataset.rows), min(rows, most))  # noqa: S311 - a sample, not a secret
    return chosen(dataset, tuple(sorted(picked)), source="given", seed=seed)


def choose_evaluation(
    dataset: DatasetManifest, *, calibration: Chosen | None, training: Sequence[Chosen] = (), given: bool
) -> Chosen:
    """Take every row that did not calibrate, nor train.

    Raises:
        DatasetUnfit: every row did.
    """
    used = {row for each in (calibration, *training) if each and same(each.dataset, dataset) for row in each.rows}
    rows = tuple(row for row in range(dataset.rows) if row not in used)
    if not rows:
        does, fewer = ("trains or chooses", "") if training else ("calibrates", "take fewer calibration_rows, or ")
        raise DatasetUnfit(
            f"Every row of dataset {dataset.name!r} {does}, so none is left to score with: "
            f"{fewer}send an evaluation dataset."
        )
    return chosen(dataset, rows, source="given" if given else "held_out", seed=None)


def choose_selection(evaluation: Chosen, *, calibration: Chosen, seed: int) -> tuple[Chosen, Chosen]:
    """Part what a search chooses by from what scores the one it chose.

    Rows that calibration left over choose, if there are enough of them and they are labelled like the evaluation
    rows, which then all score. Else the evaluation rows are parted at random, and at most half of them choose.

    Returns:
        The rows of the selection, and those of the final score.

    Raises:
        DatasetUnfit: a single row cannot do both.
    """
    spare = _spare(evaluation, calibration)
    if len(spare) >= LEAST_SPARE:
        picked = sample(spare, MOST_SELECTION, seed=seed)
        return chosen(calibration.dataset, picked, source="held_out", seed=seed), evaluation
    half = len(evaluation.rows) // 2
    if half < 1:
        raise DatasetUnfit(
            f"Dataset {evaluation.dataset.name!r} has a single row to score with, and a search needs other rows to "
            "choose by: send more rows."
        )
    picked = sample(evaluation.rows, min(half, MOST_SELECTION), seed=seed)
    rest = tuple(sorted(set(evaluation.rows) - set(picked)))
    source = evaluation.use.source
    return (
        chosen(evaluation.dataset, picked, source=source, seed=seed),
        chosen(evaluation.dataset, rest, source=source, seed=seed),
    )


def some_of(these: Chosen, most: int) -> Chosen:
    """Return at most so many of these rows, evenly spread."""
    rows = these.rows
    if len(rows) <= most:
        return these
    spread = tuple(rows[number * len(rows) // most] for number in range(most))
    return chosen(these.dataset, spread, source=these.use.source, seed=these.use.seed)


def calibrated_by(report: Report, dataset: DatasetManifest) -> Chosen | None:
    """Return the rows of a dataset that calibrated the variant a report is about; None if it was another dataset."""
    recipe, use = report.recipe, report.calibration
    if not isinstance(recipe, LearnsFromRows) or use is None or use.dataset != f"{dataset.name}:{dataset.version}":
        return None
    for hold_out in (False, True):  # whichever it was, its rows have the recorded hash
        found = choose_calibration(dataset, rows=recipe.calibration_rows, seed=recipe.seed, hold_out=hold_out)
        if found.use.sha256 == use.sha256:
            return found
    return None


def _spare(evaluation: Chosen, calibration: Chosen) -> tuple[int, ...]:
    """Return which rows of the calibration dataset are free to choose by."""
    dataset, other = calibration.dataset, evaluation.dataset
    alike = dataset.label_kind == other.label_kind and dataset.classes == other.classes
    if same(dataset, other) or not alike:
        return ()
    return tuple(sorted(set(range(dataset.rows)) - set(calibration.rows)))


def sample(rows: tuple[int, ...], most: int, *, seed: int) -> tuple[int, ...]:
    """Return so many of some rows, or all if there are fewer, picked at random and put in order."""
    return tuple(sorted(random.Random(seed).sample(rows, min(most, len(rows)))))  # noqa: S311 - not a secret


def same(one: DatasetManifest, other: DatasetManifest) -> bool:
    """Whether two datasets are the same file, whatever they are called."""
    return one.upload.sha256 == other.upload.sha256


def chosen(dataset: DatasetManifest, rows: tuple[int, ...], *, source: str, seed: int | None) -> Chosen:
    """Write down a choice of rows, which are in order."""
    text = ",".join(map(str, rows))
    use = DataUse(
        dataset=f"{dataset.name}:{dataset.version}",
        rows=len(rows),
        source="given" if source == "given" else "held_out",
        seed=seed,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )
    return Chosen(dataset=dataset, rows=rows, use=use)
