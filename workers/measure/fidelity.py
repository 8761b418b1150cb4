"""How close one form's outputs are to float32's on the same rows: running sums, no output is kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.reports import Fidelity
from workers.measure.intervals import proportion

Floats = NDArray[np.float64]
_TINY = np.finfo(np.float64).tiny


class FidelityTally:
    """Sums over the rows so far. Elements that are not finite in float32, such as masks, count for nothing."""

    def __init__(self) -> None:
        self._rows = 0
        self._signal = 0.0
        self._noise = 0.0
        self._cosines = 0.0
        self._kl = 0.0
        self._compared = 0
        self._agreed = 0

    def add(self, reference: Sequence[Floats], outputs: Sequence[Floats]) -> None:
        """Take one batch: per output float64[rows, elements] of float32, and of the form."""
        one = np.concatenate(reference, axis=1)
        other = np.concatenate(outputs, axis=1)
        finite = np.isfinite(one)
        one, other = np.where(finite, one, 0), np.where(finite, other, 0)
        self._rows += len(one)
        self._signal += float((one**2).sum())
        self._noise += float(((one - other) ** 2).sum())
        self._cosines += float(_cosines(one, other).sum())

    def add_logits(self, reference: NDArray[Any], logits: NDArray[Any]) -> None:
        """Take one batch of first outputs, (rows, classes): what agreement and divergence are about."""
        self._compared += len(reference)
        self._agreed += int((reference.argmax(axis=1) == logits.argmax(axis=1)).sum())
        self._kl += float(divergence(reference.astype(np.float64), logits.astype(np.float64)).sum())

    def result(self) -> Fidelity:
        """Sum up; at least one row must have come."""
        compared = self._compared
        return Fidelity(
            agreement=proportion(self._agreed, rows=compared) if compared else None,
            sqnr_db=sqnr_db(self._signal, self._noise),
            cosine=self._cosines / self._rows,
            kl=self._kl / compared if compared else None,
        )


def sqnr_db(signal: float, noise: float) -> float | None:
    """Return 10·log10(signal / noise), both energies; None without noise."""
    return None if noise == 0 else float(10 * np.log10(max(signal, _TINY) / noise))


def divergence(reference: Floats, logits: Floats) -> Floats:
    """Return per row KL(softmax(reference) ‖ softmax(logits)) in nats (Kullback and Leibler 1951), never below 0."""
    p, q = _log_softmax(reference), _log_softmax(logits)
    with np.errstate(invalid="ignore"):
        terms = np.exp(p) * (p - q)
    # a class that float32 rules out adds nothing; a row it cannot answer has no divergence
    summed = np.where(np.isfinite(p), terms, 0).sum(axis=1)
    result: Floats = np.maximum(summed, 0.0)
    return result


def _log_softmax(logits: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _cosines(one: Floats, other: Floats) -> Floats:
    """Return the cosine per row; 1 for two zero rows, 0 if only one is zero."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    cosines = (one * other).sum(axis=1) / np.where(norms > 0, norms, 1)
    return np.where(both_zero, 1.0, np.clip(cosines, -1, 1))
