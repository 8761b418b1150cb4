"""The best classes of every row, with their names: what `top_k` of `/predict` and Triton's `classification` ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from fastapi import Query

from app.api.arrays import Array
from app.domain.errors import RequestInvalid, SignatureMismatch

MOST_CLASSES = 1000
CLASSIFICATION = "classification"
TopK = Annotated[int | None, Query(ge=1, le=MOST_CLASSES, description="Name so many of every row's highest classes.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """One class of one row.

    Attributes:
        label: its name; None if the model has no labels.
        score: what the model's output says, as it says it: a logit stays a logit.
    """

    index: int
    label: str | None
    score: float


def wanted_classification(parameters: Mapping[str, object]) -> int | None:
    """Return the number of classes that an output's parameter `classification` asks for; None if it does not.

    Raises:
        RequestInvalid: it is not a whole number from 1 to 1000.
    """
    wanted = parameters.get(CLASSIFICATION)
    if wanted is None:
        return None
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= MOST_CLASSES:
        raise RequestInvalid(
            f"{CLASSIFICATION!r} says how many classes to name: write a whole number from 1 to {MOST_CLASSES}."
        )
    return wanted


def top_k(scores: Array, *, k: int, labels: Sequence[str] | None) -> list[list[Class]]:
    """Return the `k` highest classes of every row, or all if there are fewer.

    Of equal scores the lower index comes first; NaN comes last.

    Args:
        scores: numbers of shape [rows, classes].
        labels: names of the classes.

    Raises:
        RequestInvalid: the scores have another number of axes, or are not numbers.
        SignatureMismatch: there are more or fewer labels than classes.
    """
    _check(scores, labels=labels)
    return [
        [
            Class(index=index, label=None if labels is None else labels[index], score=score)
            for index, score in zip(best.tolist(), _plain(row[best]), strict=True)
        ]
        for row, best in ((row, _best(row, k)) for row in scores)
    ]


def classification_strings(scores: Array, *, k: int, labels: Sequence[str] | None) -> list[list[str]]:
    """Return the same as Triton writes it: `score:index:label`, or `score:index` without labels.

    Raises:
        RequestInvalid, SignatureMismatch: as `top_k`.
    """
    return [[_written(found) for found in row] for row in top_k(scores, k=k, labels=labels)]


def _check(scores: Array, *, labels: Sequence[str] | None) -> None:
    if scores.ndim != 2 or scores.dtype.kind not in "fiub":  # noqa: PLR2004 - rows and classes
        raise RequestInvalid(
            f"The output is {scores.dtype}{list(scores.shape)}, but only numbers of shape [rows, classes] have highest "
            "classes: take the output as it is."
        )
    if labels is not None and len(labels) != scores.shape[1]:
        raise SignatureMismatch(
            f"The model has {len(labels)} labels, but its output has {scores.shape[1]} classes: upload it again with a "
            "label for each, or take the output as it is."
        )


def _best(row: Array, k: int) -> npt.NDArray[np.intp]:
    """Return the indices of the `k` best, best first."""
    candidates = _candidates(row, k)
    # sorted ascending and read backwards, so what lies in the row backwards too comes out stable
    backwards = row[candidates][::-1]
    order = np.lexsort((backwards, ~np.isnan(backwards)))
    return candidates[::-1][order][::-1][:k]


def _candidates(row: Array, k: int) -> npt.NDArray[np.intp]:
    """Return, in order, the indices of all that may be among the `k` best: sorting 100,000 classes takes long."""
    numbers = row[~np.isnan(row)]
    if len(numbers) <= k:
        return np.arange(len(row))
    return np.flatnonzero(row >= np.partition(numbers, -k)[-k])


def _plain(scores: Array) -> list[float]:
    """Return Python's numbers: of float32 the shortest that means the same, as the output itself is written."""
    return [float(str(score)) if scores.dtype.kind == "f" else score.item() for score in scores]


def _written(found: Class) -> str:
    score = f"{found.score:f}" if isinstance(found.score, float) else str(int(found.score))
    return f"{score}:{found.index}" if found.label is None else f"{score}:{found.index}:{found.label}"
