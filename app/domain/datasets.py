"""Datasets: rows that calibrate or evaluate, uploaded once and read as a stream."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.domain.models import Upload


class DatasetFormat(StrEnum):
    """What kinds of dataset file Octet takes."""

    NPZ = "npz"
    SAFETENSORS = "safetensors"
    IMAGE_FOLDER = "image_folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One array of a dataset; the first axis counts the rows.

    Attributes:
        dtype: NumPy's name of the element type.
        row_shape: without the first axis.
    """

    name: str
    dtype: str
    row_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetManifest:
    """What an import found out about one version of a dataset. Its presence makes the dataset ready.

    Attributes:
        arrays: named as a model's inputs; empty for an image folder, whose rows are encoded images.
        labelled: whether every row has an integer label.
        classes: the folder names of an image folder, sorted; a row's label is its folder's index here.
    """

    name: str
    version: int
    format: DatasetFormat
    upload: Upload
    rows: int
    arrays: tuple[ArraySpec, ...]
    labelled: bool
    classes: tuple[str, ...]
    imported_at: datetime
