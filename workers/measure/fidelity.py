"""How close one form's outputs are to float32's on the same rows: per row, and as running sums; no output is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.intervals import proportion
from app.domain.reports import Fidelity

Floats = NDArray[np.float64]
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """One form's outputs beside float32's, per row, over all elements that are finite in float32: float64[rows].

    Attributes:
        signal, noise: energy of float32's outputs, and of the difference.
    """

    signal: Floats
    noise: Floats
    cosine: Floats


class FidelityTally:
    """Sums over the rows so far. Elements that are not finite in float32, such as masks, count for nothing."""

    def __init__(self) -> None:
        self._rows = 0
        self._signal = 0.0
        self._noise = 0.0
        self._cosines = 0.0
        self._kl = 0.0
        self._scored = 0
        self._compared = 0
        self._agreed = 0

    def add(self, close: Closeness) -> None:
        """Take how near the form's outputs are in one batch."""
        self._rows += len(close.signal)
        self._signal += float(close.signal.sum())
        self._noise += float(close.noise.sum())
        self._cosines += float(close.cosine.sum())

    def add_classes(self, reference: NDArray[np.int64], classes: NDArray[np.int64]) -> None:
        """Take the classes that one batch answers, int64[rows]."""
        self._compared += len(reference)
        self._agreed += int((reference == classes).sum())

    def add_divergence(self, divergences: Floats) -> None:
        """Take one batch's divergences from float32, float64[rows]."""
        self._scored += len(divergences)
        self._kl += float(divergences.sum())

    def result(self) -> Fidelity:
        """Sum up; at least one row must have come."""
        compared, scored = self._compared, self._scored
        return Fidelity(
            agreement=proportion(self._agreed, rows=compared) if compared else None,
            sqnr_db=sqnr_db(self._signal, self._noise),
            cosine=self._cosines / self._rows,
            kl=self._kl / scored if scored else None,
        )


def closeness(reference: Sequence[Floats], outputs: Sequence[Floats]) -> Closeness:
    """Compare one form with float32: per output float64[rows, elements] of each.

    The cosine of two zero rows is 1, and 0 if only one of them is zero.
    """
    finite = [np.isfinite(one) for one in reference]
    if not all(mask.all() for mask in finite):  # masks count for nothing
        reference = [np.where(mask, one, 0) for mask, one in zip(finite, reference, strict=True)]
        outputs = [np.where(mask, form, 0) for mask, form in zip(finite, outputs, strict=True)]
    differences = [one - form for one, form in zip(reference, outputs, strict=True)]
    return Closeness(
        signal=_products(reference, reference),
        noise=_products(differences, differences),
        cosine=_cosine(reference, outputs),
    )


def _cosine(reference: Sequence[Floats], outputs: Sequence[Floats]) -> Floats:
    one, form = _near_one(reference), _near_one(outputs)
    signal, other = _products(one, one), _products(form, form)
    norms = np.sqrt(signal) * np.sqrt(other)
    cosine = np.clip(_products(one, form) / np.where(norms > 0, norms, 1), -1, 1)
    cosine[(signal == 0) & (other == 0)] = 1.0
    return cosine


def _near_one(outputs: Sequence[Floats]) -> list[Floats]:
    """Scale each row by a power of two, which rounds nothing: the square of 1e155 is no float64."""
    largest = np.max([np.abs(output).max(axis=1, initial=0) for output in outputs], axis=0)
    _, exponents = np.frexp(largest)
    return [np.ldexp(output, -exponents[:, np.newaxis]) for output in outputs]


def _products(one: Sequence[Floats], other: Sequence[Floats]) -> Floats:
    """Return the scalar product of each row, over all outputs: float64[rows]."""
    found: Floats = np.sum([np.einsum("re,re->r", a, b) for a, b in zip(one, other, strict=True)], axis=0)
    return found


def sqnr_db(signal: float, noise: float) -> float | None:
    """Return 10·log10(signal / noise), both energies; None without noise, or where one is more than a float64 holds."""
    if noise == 0 or not np.isfinite((signal, noise)).all():
        return None
    return float(10 * np.log10(max(signal, _TINY) / noise))


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
