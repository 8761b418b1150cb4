"""Retrieval: the share of a row's ten nearest rows, by cosine, that float32 too has among its nearest."""

import numpy as np
from numpy.typing import NDArray

from workers.measure.answers import Answers
from workers.measure.tallies import Sampled, higher_is_better, mean, sampled_sums

NEIGHBOURS = 10
MOST_ROWS = 2000
MOST_BYTES = 64 << 20
"""Per form; wider embeddings are compared on fewer rows."""
_LEAST_ROWS = 2 * NEIGHBOURS
_EMBEDDING_AXES = 2
# Rounding of a float32 dot product of unit vectors: rows as near as the tenth but for that are as near as it.
_TIE = 1e-6

Embeddings = NDArray[np.float32]


class Retrieval:
    """Keeps the embeddings of every `step`-th row, so that a sorted dataset is seen whole."""

    def __init__(self, *, step: int, size: int) -> None:
        self._step = step
        self._size = size
        self._seen = 0
        self._kept: list[Embeddings] = []

    def add(self, answers: Answers) -> None:
        chosen = np.arange(-self._seen % self._step, len(answers.rows), self._step)
        self._seen += len(answers.rows)
        if answers.first[0].ndim != _EMBEDDING_AXES or answers.first[0].shape[1] != self._size:
            self._size = -1  # rows of another width are no neighbours
        elif self._size > 0:
            self._kept.append(np.stack([form[chosen] for form in answers.first]).astype(np.float32))

    def result(self) -> Sampled | None:
        if self._size < 0:
            return None
        forms = [unit(form) for form in np.concatenate(self._kept, axis=1)]
        if len(forms[0]) < _LEAST_ROWS or not np.isfinite(forms[0]).all():
            return None
        kept = np.stack([recalls(forms[0], form) for form in forms])
        return sampled_sums(np.stack([kept, np.ones_like(kept)]), close=mean, drop=higher_is_better)


def tally(first: Answers, *, rows: int) -> Retrieval | None:
    """Apply to a first output of numbers, (rows, size), with twenty rows or more; at most 2,000 of them are taken."""
    output = first.first[0]
    if len(first.outputs) == 1 or output.ndim != _EMBEDDING_AXES or output.shape[1] < 2 or output.dtype.kind != "f":  # noqa: PLR2004
        return None
    most = min(MOST_ROWS, MOST_BYTES // (4 * output.shape[1]))
    if min(rows, most) < _LEAST_ROWS:
        return None
    return Retrieval(step=-(-rows // most), size=output.shape[1])


def recalls(reference: Embeddings, form: Embeddings) -> NDArray[np.float64]:
    """Return per row which share of its ten nearest rows in `form` is as near as the tenth in `reference`.

    Ties in float32, such as duplicates, so count as kept whichever of them a form takes.

    Args:
        reference, form: float32[rows, size], of length 1.
    """
    before, after = reference @ reference.T, form @ form.T
    for similarity in (before, after):
        np.fill_diagonal(similarity, -np.inf)
    tenth = np.partition(before, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS]
    nearest = np.argpartition(after, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
    found: NDArray[np.float64] = (np.take_along_axis(before, nearest, axis=1) >= tenth[:, np.newaxis] - _TIE).mean(
        axis=1
    )
    return found


def unit(vectors: Embeddings) -> Embeddings:
    """Bring vectors to length 1; zeros stay zeros."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    found: Embeddings = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
    return found
