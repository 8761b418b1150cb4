"""What values the rows bring to the model's inputs, and whether they fit each other and the preprocessing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.evidence import Finding
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import Signature
from workers.data.batches import batches
from workers.stage_records.common import RowSource

MOST_ROWS = 1000
"""Enough for ranges and means; more rows would only decode more images."""

_BATCH_ROWS = 32
_ROWS_NAMED = 20
_WHITE = 255.0
_BEYOND = 0.05
"""How far outside the possible range, as a share of its width, values count as wrongly normalised."""

_FAR_MEANS = 1.0
_FAR_SPREADS = 3.0
_OUTLIER = 0.25
_FLOATS = ("float16", "float32", "float64", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputValues:
    """One float input: per row its extremes, mean and standard deviation, float64[rows] each."""

    name: str
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest value of all rows."""
        return float(self.low.min()), float(self.high.max())

    @property
    def deviation(self) -> float:
        """The standard deviation of all values of all rows, rows weighing alike."""
        return float(np.sqrt((self.spread**2).mean() + self.mean.var()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """All float inputs of at most `MOST_ROWS` rows, evenly taken; `rows` are their numbers."""

    rows: tuple[int, ...]
    inputs: tuple[InputValues, ...]


def summarize(source: RowSource, signature: Signature, *, scratch: Path) -> Values:
    """Read rows as the model takes them, and keep four numbers per row and input."""
    every = max(1, -(-len(source.rows) // MOST_ROWS))
    chosen = RowSource(
        path=source.path, format=source.format, rows=source.rows[::every], preprocessing=source.preprocessing
    )
    floats = [spec for spec in signature.inputs if spec.dtype in _FLOATS]
    gathered: dict[str, list[NDArray[np.float64]]] = {spec.name: [] for spec in floats}
    for batch in batches(chosen, signature, scratch=scratch, size=_BATCH_ROWS):
        for spec in floats:
            gathered[spec.name].append(_per_row(batch.inputs[spec.name], axis=spec.batch_axis))
    inputs = (InputValues(name=name, **_columns(parts)) for name, parts in gathered.items())
    return Values(rows=chosen.rows, inputs=tuple(inputs))


def _per_row(array: NDArray[Any], *, axis: int | None) -> NDArray[np.float64]:
    rows = array[np.newaxis] if axis is None else np.moveaxis(array, axis, 0)
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    return np.stack([flat.min(1), flat.max(1), flat.mean(1), flat.std(1)])


def _columns(parts: list[NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    return dict(zip(("low", "high", "mean", "spread"), np.concatenate(parts, axis=1), strict=True))


def normalisation(values: Values, preprocessing: ImagePreprocessing | None, *, of: str) -> Iterator[Finding]:
    """Say so where an image input cannot have come out of the model's preprocessing."""
    if preprocessing is None or len(values.inputs) != 1:
        return
    ends = [
        (pixel * preprocessing.scale - mean) / std
        for pixel in (0.0, _WHITE)
        for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)
    ]
    low, high = min(ends), max(ends)
    seen = values.inputs[0]
    outside = _beyond(seen, low=low, high=high, share=_BEYOND)
    if outside.any():
        yield Finding(
            code="normalisation_outside",
            severity="warning",
            message=(
                f"{int(outside.sum())} of {len(values.rows)} {of} rows have values from {seen.low.min():.3g} to "
                f"{seen.high.max():.3g}, but the preprocessing can only make {low:.3g} to {high:.3g}: normalise the "
                "arrays as the model's preprocessing says."
            ),
            rows=_numbers(values, outside),
        )
    elif _is_raw(seen, low=low, high=high):
        yield Finding(
            code="normalisation_missing",
            severity="warning",
            message=(
                f"No {of} row has a value below 0, though the preprocessing makes {low:.3g} to {high:.3g}: the arrays "
                "look as if mean and std had not been applied."
            ),
        )


def _is_raw(seen: InputValues, *, low: float, high: float) -> bool:
    """Whether the values look like pixels over 255: dark images exist, but not without a single dark pixel."""
    centred = low < -_BEYOND * (high - low)
    return bool(centred and seen.low.min() >= 0 and seen.high.max() <= 1.0)


def ranges(calibration: Values, evaluation: Values) -> Iterator[Finding]:
    """Compare calibration with evaluation rows, input by input."""
    for one, other in zip(calibration.inputs, evaluation.inputs, strict=True):
        yield from _outliers(calibration, one, other)
        yield from _clipped(evaluation, one, other)
        yield from _distance(one, other)


def _outliers(calibration: Values, one: InputValues, other: InputValues) -> Iterator[Finding]:
    low, high = other.range
    outside = _beyond(one, low=low, high=high, share=_OUTLIER)
    if outside.any():
        yield Finding(
            code="calibration_outside_range",
            severity="warning",
            message=(
                f"{int(outside.sum())} calibration rows of input {one.name[:60]!r} reach far outside the evaluation "
                f"rows' range of {low:.3g} to {high:.3g}, which makes every step coarser: drop these rows."
            ),
            rows=_numbers(calibration, outside),
        )


def _clipped(evaluation: Values, one: InputValues, other: InputValues) -> Iterator[Finding]:
    low, high = one.range
    outside = _beyond(other, low=low, high=high, share=_OUTLIER)
    if outside.any():
        yield Finding(
            code="evaluation_outside_range",
            severity="warning",
            message=(
                f"{int(outside.sum())} evaluation rows of input {one.name[:60]!r} reach far outside the calibration "
                f"rows' range of {low:.3g} to {high:.3g} and are cut off there: calibrate with rows like them."
            ),
            rows=_numbers(evaluation, outside),
        )


def _beyond(seen: InputValues, *, low: float, high: float, share: float) -> NDArray[np.bool_]:
    """Return per row whether it reaches outside a range by more than this share of its width."""
    margin = share * (high - low)
    return (seen.low < low - margin) | (seen.high > high + margin)


def _distance(one: InputValues, other: InputValues) -> Iterator[Finding]:
    here, there = float(one.mean.mean()), float(other.mean.mean())
    spread, reference = one.deviation, other.deviation
    if not reference or not spread:  # constant inputs have no scale to measure by
        return
    if abs(here - there) / reference > _FAR_MEANS or not 1 / _FAR_SPREADS < spread / reference < _FAR_SPREADS:
        yield Finding(
            code="normalisation_differs",
            severity="warning",
            message=(
                f"Input {one.name[:60]!r} has mean {here:.3g} and standard deviation {spread:.3g} in the calibration "
                f"rows, but {there:.3g} and {reference:.3g} in the evaluation rows: prepare both alike."
            ),
        )


def _numbers(values: Values, chosen: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(row) for row, taken in zip(values.rows, chosen, strict=True) if taken)[:_ROWS_NAMED]
