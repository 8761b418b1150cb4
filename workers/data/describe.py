"""The stage that reads a whole dataset once when it is imported, so that no later job meets a bad row."""

from pathlib import Path

import numpy as np

from app.domain.errors import DatasetUnfit, ImageInvalid
from app.domain.preprocessing import ImagePreprocessing
from workers.data.datasets import open_dataset
from workers.data.preprocessing import preprocess
from workers.data.rows import LARGEST_CLASS, LARGEST_CLASS_IN_MAP, Dataset, Row
from workers.stage_records.common import Progress
from workers.stage_records.importing import DescribeResult, DescribeSpec

_REPORTS = 100
# Decodes every pixel and keeps few of them: what a model does with an image is not known here.
_DECODING = ImagePreprocessing(resize=8, crop=8)


def describe(spec: DescribeSpec, scratch: Path, progress: Progress) -> DescribeResult:
    """Check every row of an uploaded dataset, as a stream.

    Raises:
        UploadUnreadable, UploadRefused, DatasetUnfit: with the array, row or file that is wrong.
    """
    path = scratch / spec.upload
    dataset = open_dataset(path)
    every = max(1, dataset.rows // _REPORTS)
    for row in dataset.read(range(dataset.rows)):
        _check_row(row, dataset=dataset)
        if row.number % every == 0:
            progress(row.number / dataset.rows, f"checked {row.number} of {dataset.rows} rows")
    progress(1.0, f"checked {dataset.rows} rows")
    return DescribeResult(
        format=dataset.format,
        rows=dataset.rows,
        arrays=dataset.arrays,
        labelled=dataset.labelled,
        classes=dataset.classes,
        labels=dataset.labels,
    )


def _check_row(row: Row, *, dataset: Dataset) -> None:
    _check_label(row)
    for name, array in row.arrays.items():
        # ml_dtypes' bfloat16 is of kind V
        if array.dtype.kind in "fV" and not np.isfinite(array).all():
            raise DatasetUnfit(
                f"Array {name!r} holds NaN or an infinity in row {row.number}: remove or repair the row."
            )
    if row.image is not None:
        try:
            preprocess(row.image, _DECODING, size=None)
        except ImageInvalid as error:
            raise DatasetUnfit(f"{dataset.name_of(row.number)} cannot be used: {error.message}") from error


def _check_label(row: Row) -> None:
    label = row.label
    if isinstance(label, int):
        if not 0 <= label <= LARGEST_CLASS:
            raise DatasetUnfit(f"The label of row {row.number} is {label}: labels are 0 to {LARGEST_CLASS}.")
    elif label is not None and label.dtype.kind == "f":
        if not np.isfinite(label).all():
            raise DatasetUnfit(f"The labels hold NaN or an infinity in row {row.number}: remove or repair the row.")
    elif label is not None and label.max() > LARGEST_CLASS_IN_MAP:
        raise DatasetUnfit(
            f"The map of row {row.number} has class {label.max()}: classes in maps are 0 to {LARGEST_CLASS_IN_MAP}, "
            "negative values are ignored."
        )
