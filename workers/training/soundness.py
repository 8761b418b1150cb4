"""Whether rows and what they should be answered are numbers that a loss can be made of."""

import math

from torch import Tensor

from app.domain.errors import DatasetUnfit
from workers.training.crew import Crew
from workers.training.losses import Targets, is_classes
from workers.training.material import Material
from workers.training.rows import AT_ONCE

_LARGEST = 1e18
"""Of values: their squares, and sums of those, are float32 numbers as well."""


def check_sound(training: Material, held_out: Material, score: float, *, values: bool, crew: Crew) -> None:
    """Look through what all rows should be answered, once training has looked at those held out.

    Args:
        score: of the best start.
        values: as of `TrainSpec`.

    Raises:
        DatasetUnfit: from some rows no loss can be computed: they, or their labels, are too large.
    """
    for name, material in (("training", training), ("held-out", held_out)):
        found = _unsound(material, values=values, crew=crew)
        if found is not None:
            row, what = found
            raise DatasetUnfit(
                f"Row {row} of the dataset, one of the {name} rows, is no row to train with: {what}, so no loss can be "
                "computed; mend the row or leave it out."
            )
    if not math.isfinite(score):
        raise DatasetUnfit(
            "The loss of the held-out rows is no finite number before training has begun: some rows or labels are too "
            "large; mend them or leave them out."
        )


def _unsound(material: Material, *, values: bool, crew: Crew) -> tuple[int, str] | None:
    """Return the first row of this process' part that is of no use, and why."""
    for number, (_, targets) in enumerate(material.all(rank=crew.rank, size=crew.size)):
        first = (number * crew.size + crew.rank) * AT_ONCE
        for wrong, what in _judged(targets, values=values):
            if wrong.any():
                place = min(first + int(wrong.nonzero()[0]), len(material.rows) - 1)
                return material.rows.numbers[place], what
    return None


def _judged(targets: Targets, *, values: bool) -> list[tuple[Tensor, str]]:
    """Return for each tensor of a batch which rows are wrong, and the words for it."""
    found = [
        (
            _beyond(each, math.inf if is_classes(each) and not values else _LARGEST),
            f"it is so large that the teacher's answer is not finite or above {_LARGEST:g}",
        )
        for each in targets.teacher.values()
    ]
    if targets.labels is not None:
        found.append((_beyond(targets.labels, _LARGEST), f"its label is above {_LARGEST:g}"))
    return found


def _beyond(tensor: Tensor, largest: float) -> Tensor:
    """Return bool[rows]: some number of the row is none, infinite, or above the largest."""
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(-1, 1)
    return ~(rows.isfinite() & (rows.abs() <= largest)).all(dim=1)
