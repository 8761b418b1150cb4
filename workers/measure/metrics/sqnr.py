"""SQNR: 10·log10 of the energy of float32's outputs over that of the difference, all rows together."""

import numpy as np

from workers.measure.answers import Answers
from workers.measure.tallies import Floats, Sums

MOST_DB = 200.0
"""What no difference at all reads as, float32's own value among them."""


def tally(first: Answers, *, rows: int) -> Sums | None:  # noqa: ARG001 - as every metric
    """Apply to outputs that are numbers, not classes. The drop is how many dB the noise adds to the signal's level."""
    return Sums(_columns, close=_level, drop=_added) if first.has_floats and len(first.outputs) > 1 else None


def _columns(answers: Answers) -> Floats:
    near = answers.closeness
    signal = np.stack([near[0].signal, *(form.signal for form in near)])
    return np.stack([signal, np.stack([np.zeros(len(answers.rows)), *(form.noise for form in near)])])


def _level(sums: Floats) -> Floats:
    tiny = np.finfo(np.float64).tiny
    levels = 10 * (np.log10(np.maximum(sums[0], tiny)) - np.log10(np.maximum(sums[1], tiny)))
    return np.where(sums[1] == 0, MOST_DB, np.clip(levels, -MOST_DB, MOST_DB))


def _added(levels: Floats) -> Floats:
    found: Floats = 10 * np.log10(1 + 10 ** (-levels[..., -1] / 10))
    return found
