"""PSNR: 10·log10 of the squared peak over the mean squared error, of each row, averaged over the rows."""

import numpy as np

from workers.measure.answers import Answers, fitting
from workers.measure.tallies import Floats, Sampled, higher_is_better, mean, sampled_sums

MOST_DB = 100.0
"""What a row without error has: float32 itself carries little more."""
_IMAGE_AXES = 2


class Psnr:
    """Keeps each row's squared error, and the labels' range, which is known only at the end."""

    def __init__(self) -> None:
        self._errors: list[Floats] = []
        self._low, self._high = np.inf, -np.inf

    def add(self, answers: Answers) -> None:
        targets, counts = fitting(answers.targets), answers.finite_targets.sum(axis=1)
        sums = np.stack([(errors**2).sum(axis=1) for errors in answers.errors])
        self._errors.append(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))
        self._low, self._high = min(self._low, targets.min()), max(self._high, targets.max())

    def result(self) -> Sampled | None:
        errors, peak = np.concatenate(self._errors, axis=1), self._high - self._low
        if peak == 0:
            return None
        least = 10 ** (-MOST_DB / 10)
        levels = -10 * np.log10(np.maximum(errors / peak**2, least))
        counted = np.isfinite(errors)
        return sampled_sums(np.stack([np.where(counted, levels, 0), counted]), close=mean, drop=higher_is_better)


def tally(first: Answers, *, rows: int) -> Psnr | None:  # noqa: ARG001 - as every metric
    """Apply to values of the first output's shape with two axes or more per row. The peak is the labels' range."""
    labels = first.labels
    fits = first.targets is not None and labels is not None and labels.shape == first.first[0].shape
    return Psnr() if fits and labels is not None and labels.ndim > _IMAGE_AXES else None
