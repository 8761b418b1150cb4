"""What metrics have in common: what they keep of the rows as these stream by, and how scores come of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.domain.evidence import ClassScore, Interval, MetricScore
from app.domain.intervals import Pairs, paired_difference, wilson
from app.domain.metrics import METRICS
from workers.measure.answers import Answers
from workers.measure.statistics import BOOTSTRAP, NEWCOMBE, WILSON, Resampled, Sample, interval, mcnemar, point

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Drop = Callable[[Floats], Floats]
"""From values float64[..., forms], float32 first and the variant last, to how much worse the variant is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A metric whose intervals come from resampling.

    Attributes:
        drop: positive is worse.
        doubt: half width that the intervals have at least.
        classes: the metric by class.
    """

    sample: Sample
    drop: Drop
    method: str = BOOTSTRAP
    doubt: float = 0.0
    classes: tuple[ClassScore, ...] = ()

    def score(self, name: str, forms: Sequence[str], resamples: Resampled) -> MetricScore:
        """Put values and intervals into one record; a share stays within 0 and 1."""
        found, rows = point(self.sample), self.sample.rows
        make = partial(self._interval, rows=rows)
        measured = [
            make(float(value), resamples.mapped(itemgetter((slice(None), form))), share=METRICS[name].unit == "share")
            for form, value in enumerate(found)
        ]
        if METRICS[name].labels == "none":  # float32 is what the others are compared with
            measured[0] = Interval(value=measured[0].value, low=measured[0].value, high=measured[0].value)
        return MetricScore(
            name=name,
            rows=rows,
            measured=dict(zip(forms, measured, strict=True)),
            drop=make(float(self.drop(found)), resamples.mapped(self.drop), share=False),
            p_value=None,
            method=self.method,
            classes=self.classes,
        )

    def _interval(self, value: float, resamples: Resampled, *, rows: int, share: bool) -> Interval:
        found = interval(value, resamples, rows=rows)
        low, high = min(found.low, value - self.doubt), max(found.high, value + self.doubt)
        least, most = (0.0, 1.0) if share else (-np.inf, np.inf)
        return Interval(value=value, low=max(least, low), high=min(most, high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A metric that counts each row wholly or not at all: `hits`, bool[forms, rows]."""

    hits: Bools

    def score(self, name: str, forms: Sequence[str]) -> MetricScore:
        """Return shares with their score intervals; the drop of a fidelity metric is what the variant lacks of 1."""
        rows = self.hits.shape[1]
        measured = {form: _share(int(hits.sum()), rows=rows) for form, hits in zip(forms, self.hits, strict=True)}
        before, after = self.hits[0], self.hits[-1]
        lost, gained = int((before & ~after).sum()), int((~before & after).sum())
        fidelity = METRICS[name].labels == "none"
        if fidelity:
            measured[forms[0]] = Interval(value=1.0, low=1.0, high=1.0)
            variant = measured[forms[-1]]
            drop = Interval(value=1 - variant.value, low=1 - variant.high, high=1 - variant.low)
        else:
            both, neither = int((before & after).sum()), int((~before & ~after).sum())
            drop = _turned(Pairs(both=both, only_variant=gained, only_float32=lost, neither=neither))
        return MetricScore(
            name=name,
            rows=rows,
            measured=measured,
            drop=drop,
            p_value=None if fidelity else mcnemar(lost=lost, gained=gained),
            method=WILSON if fidelity else NEWCOMBE,
            changed=(lost, gained),
        )


Evidence = Sampled | Counted


class Tally(Protocol):
    """What one metric keeps of the rows so far: memory per row or class, never the outputs."""

    def add(self, answers: Answers) -> None: ...

    def result(self) -> Evidence | None:
        """Sum up after the last row; None if the metric has no value after all."""
        ...


class Hits:
    """Keeps whether each row counts.

    Args:
        hits: from a batch to bool[forms, rows]; rows that cannot count either way may be left out.
    """

    def __init__(self, hits: Callable[[Answers], Bools]) -> None:
        self._hits = hits
        self._kept: list[Bools] = []

    def add(self, answers: Answers) -> None:
        self._kept.append(self._hits(answers))

    def result(self) -> Counted | None:
        hits = np.concatenate(self._kept, axis=1)
        return Counted(hits=hits) if hits.size else None


class Sums:
    """Keeps a few numbers per row, whose sums over the rows make the metric.

    Args:
        columns: from a batch to float64[columns, forms, rows].
        close: from sums float64[columns, ..., forms] to the metric, float64[..., forms].
        drop: positive is worse.
    """

    def __init__(self, columns: Callable[[Answers], Floats], *, close: Callable[[Floats], Floats], drop: Drop) -> None:
        self._columns = columns
        self._close = close
        self._drop = drop
        self._kept: list[Floats] = []

    def add(self, answers: Answers) -> None:
        self._kept.append(self._columns(answers))

    def result(self) -> Sampled | None:
        columns = np.concatenate(self._kept, axis=2)
        return sampled_sums(columns, close=self._close, drop=self._drop)


def sampled_sums(columns: Floats, *, close: Callable[[Floats], Floats], drop: Drop) -> Sampled | None:
    """Make a metric of sums over rows; None if rows leave it undefined.

    Args:
        columns: float64[columns, forms, rows].
    """
    count, forms, rows = columns.shape
    flat = np.ascontiguousarray(columns.reshape(count * forms, rows).T)

    def values(weights: Floats) -> Floats:
        sums = (weights @ flat).reshape(len(weights), count, forms)
        return close(np.moveaxis(sums, 1, 0))

    sample = Sample(rows=rows, values=values)
    return Sampled(sample=sample, drop=drop) if np.isfinite(point(sample)).all() else None


def means(of: Callable[[Answers], Sequence[Floats]], *, drop: Drop) -> Sums:
    """Return a tally of the mean over rows of one number per form: `of` makes float64[rows] for each."""

    def columns(answers: Answers) -> Floats:
        numbers = np.stack(list(of(answers)))
        return np.stack([numbers, np.ones_like(numbers)])

    return Sums(columns, close=mean, drop=drop)


def mean(sums: Floats) -> Floats:
    """Divide the first sum by the second; NaN where no row counts."""
    found: Floats = np.divide(sums[0], sums[1], out=np.full_like(sums[0], np.nan), where=sums[1] > 0)
    return found


def higher_is_better(values: Floats) -> Floats:
    """Return float32 minus variant."""
    found: Floats = values[..., 0] - values[..., -1]
    return found


def lower_is_better(values: Floats) -> Floats:
    """Return variant minus float32."""
    found: Floats = values[..., -1] - values[..., 0]
    return found


def _share(count: int, *, rows: int) -> Interval:
    low, high = wilson(count, rows=rows)
    return Interval(value=count / rows, low=low, high=high)


def _turned(pairs: Pairs) -> Interval:
    difference = paired_difference(pairs)
    return Interval(value=-difference.value, low=-difference.high, high=-difference.low)
