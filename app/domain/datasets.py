"""Datasets: rows that calibrate or evaluate, uploaded once and read as a stream."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.domain.metrics import Labels
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

    @property
    def label_kind(self) -> Labels:
        """What an array of labels holds: one class per row, a map of classes per row, or real numbers."""
        if "float" in self.dtype:
            return "values"
        return "class" if all(size == 1 for size in self.row_shape) else "class_map"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetManifest:
    """What an import found out about one version of a dataset. Its presence makes the dataset ready.

    Attributes:
        arrays: named as a model's inputs; empty for an image folder, whose rows are encoded images.
        labelled: whether every row has a label, of any kind.
        classes: the folder names of an image folder, sorted; a row's label is its folder's index here.
        labels: integers without further axes are classes, with axes maps of classes (negative values, and 255 where the
            model tells fewer classes apart, are ignored); floats are values to be met by the model's first output. None
            without labels, and in manifests older than this field.
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
    labels: ArraySpec | None = None

    @property
    def label_kind(self) -> Labels:
        """What the rows' labels are; before manifests said so, all were classes."""
        if self.labels is None:
            return "class" if self.labelled else "none"
        return self.labels.label_kind
