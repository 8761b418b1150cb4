"""Rows of a dataset as a model takes them: images preprocessed, arrays checked and stacked along the batch axis."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import DatasetUnfit, ImageInvalid, SignatureMismatch
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import Signature, TensorSpec
from workers.data.datasets import open_dataset
from workers.data.preprocessing import preprocess_for
from workers.data.rows import Dataset, Row
from workers.stage_records.common import RowSource

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some rows, ready for the engine.

    Attributes:
        rows: their numbers in the dataset.
        labels: int64[rows] for classes; maps of classes or values stacked, in the file's dtype; None without labels.
    """

    inputs: Tensors
    rows: tuple[int, ...]
    labels: NDArray[Any] | None


def batches(source: RowSource, signature: Signature, *, scratch: Path, size: int) -> Iterator[Batch]:
    """Yield the source's rows in batches of `size`, the last one smaller.

    A model with an input or output that does not count rows is given one row at a time; a row then is the whole
    tensor, with or without its leading axis of 1.

    Raises:
        DatasetUnfit: a row that the model does not take.
    """
    dataset = open_dataset(scratch / source.path, format=source.format)
    if source.rows and source.rows[-1] >= dataset.rows:
        raise DatasetUnfit(f"Row {source.rows[-1]} was asked of a dataset of {dataset.rows} rows.")
    numbers = dataset.read(source.rows)
    while taken := list(islice(numbers, size if signature.batched else 1)):
        yield _batch(taken, dataset=dataset, signature=signature, preprocessing=source.preprocessing)


def _batch(
    rows: Sequence[Row], *, dataset: Dataset, signature: Signature, preprocessing: ImagePreprocessing | None
) -> Batch:
    tensors = [_tensors(row, dataset=dataset, signature=signature, preprocessing=preprocessing) for row in rows]
    return Batch(
        inputs={spec.name: _stack([row[spec.name] for row in tensors], spec=spec) for spec in signature.inputs},
        rows=tuple(row.number for row in rows),
        labels=_labels(rows),
    )


def _labels(rows: Sequence[Row]) -> NDArray[Any] | None:
    labels = [row.label for row in rows if row.label is not None]
    if not labels:
        return None
    return np.array(labels, np.int64) if isinstance(labels[0], int) else np.stack(labels)


def _tensors(row: Row, *, dataset: Dataset, signature: Signature, preprocessing: ImagePreprocessing | None) -> Tensors:
    if row.image is None:
        return {spec.name: _array(row, spec=spec) for spec in signature.inputs}
    if preprocessing is None or len(signature.inputs) != 1:
        raise DatasetUnfit("The dataset holds images, which need a model with one input and a preprocessing.")
    spec = signature.inputs[0]
    try:
        return {spec.name: _pixels(row.image, spec, preprocessing)}
    except (ImageInvalid, SignatureMismatch) as error:
        raise DatasetUnfit(f"{dataset.name_of(row.number)} cannot be used: {error.message}") from error


def _pixels(image: bytes, spec: TensorSpec, preprocessing: ImagePreprocessing) -> NDArray[Any]:
    array: NDArray[Any] = preprocess_for(spec, image, preprocessing)
    return array if spec.batch_axis is None else array.take(0, axis=spec.batch_axis)


def _array(row: Row, *, spec: TensorSpec) -> NDArray[Any]:
    if spec.name not in row.arrays:
        raise DatasetUnfit(
            f"The dataset has no array {spec.name!r}, which the model takes: name the arrays as its inputs."
        )
    return row.arrays[spec.name]


def _stack(rows: Sequence[NDArray[Any]], *, spec: TensorSpec) -> NDArray[Any]:
    if spec.batch_axis is None:
        stacked = rows[0] if rows[0].ndim == len(spec.shape) else rows[0][np.newaxis]
    elif len({row.shape for row in rows}) > 1:
        raise DatasetUnfit(f"Rows for input {spec.name!r} differ in shape: bring the images to one size.")
    else:
        stacked = np.stack(rows, axis=spec.batch_axis)
    try:
        spec.check(stacked.dtype.name, stacked.shape)
    except SignatureMismatch as error:
        raise DatasetUnfit(error.message) from error
    return np.ascontiguousarray(stacked)
