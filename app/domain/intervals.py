"""Confidence intervals for shares of rows, and for the difference of two shares of the same rows. Pure arithmetic."""

from dataclasses import dataclass
from math import sqrt

from app.domain.reports import Difference, Proportion

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """How often two classifiers were right on the same rows; fractions of a row where a count is expected, not seen."""

    both: float
    only_variant: float
    only_float32: float
    neither: float

    @property
    def rows(self) -> float:
        return self.both + self.only_variant + self.only_float32 + self.neither

    def scaled(self, factor: float) -> "Pairs":
        """Return the same shares of `factor` times as many rows."""
        return Pairs(
            both=self.both * factor,
            only_variant=self.only_variant * factor,
            only_float32=self.only_float32 * factor,
            neither=self.neither * factor,
        )


def proportion(count: int, *, rows: int) -> Proportion:
    """Return `count / rows` with its 95 % score interval.

    The interval (Wilson 1927, J. Am. Stat. Assoc. 22:209) keeps its coverage near 0 and 1, where accuracies lie, and
    never leaves [0, 1].
    """
    low, high = wilson(count, rows=rows)
    return Proportion(value=count / rows, low=low, high=high, count=count, rows=rows)


def wilson(count: float, *, rows: float) -> tuple[float, float]:
    """Return the limits of the 95 % score interval, 0 to 1; `rows` is more than 0."""
    share, z2 = count / rows, Z_95**2
    middle = share + z2 / (2 * rows)
    half = Z_95 * sqrt(max(0.0, share * (1 - share)) / rows + z2 / (4 * rows**2))
    # rounding alone could put a limit a hair beyond the share itself
    return min(share, (middle - half) / (1 + z2 / rows)), max(share, (middle + half) / (1 + z2 / rows))


def paired_difference(pairs: Pairs) -> Difference:
    """Return the variant's share of right rows minus float32's, with its 95 % interval.

    Newcombe 1998, Statistics in Medicine 17:2635, method 10: the two Wilson intervals, combined by squaring and
    adding, with their correlation phi, whose numerator is corrected for continuity. Two forms that agree on nearly
    every row get the narrow interval that their agreement earns.
    """
    variant, float32 = pairs.both + pairs.only_variant, pairs.both + pairs.only_float32
    p1, p2 = variant / pairs.rows, float32 / pairs.rows
    low1, high1 = wilson(variant, rows=pairs.rows)
    low2, high2 = wilson(float32, rows=pairs.rows)
    phi = _phi(pairs)
    below = _combined(p1 - low1, high2 - p2, phi)
    above = _combined(high1 - p1, p2 - low2, phi)
    return Difference(value=p1 - p2, low=max(-1.0, p1 - p2 - below), high=min(1.0, p1 - p2 + above))


def _combined(one: float, other: float, phi: float) -> float:
    return sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))


def _phi(pairs: Pairs) -> float:
    """Return the correlation of the two columns; 0 where one of them is constant."""
    a, b, c, d = pairs.both, pairs.only_variant, pairs.only_float32, pairs.neither
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    numerator = float(a * d - b * c)
    if numerator > 0:
        numerator = max(0.0, numerator - pairs.rows / 2)
    return numerator / sqrt(product)
