"""What a dataset is to the rest of the workers: numbered rows, read in ascending order, one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from app.domain.datasets import ArraySpec, DatasetFormat

LABELS = "labels"
"""The array of labels; every other array is named as a model's input."""

LARGEST_CLASS = 2**31 - 1
LARGEST_CLASS_IN_MAP = 2**16 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row.

    Attributes:
        number: counted from zero.
        arrays: by name, without the row axis; empty for an image.
        image: the encoded image, None for a row of arrays.
        label: a class; or a map of classes or an array of values, without the row axis; None without labels.
    """

    number: int
    arrays: dict[str, NDArray[Any]]
    image: bytes | None
    label: int | NDArray[Any] | None


class Dataset(Protocol):
    """An opened dataset: what its headers say, and its rows as a stream. Holds no open file between reads."""

    @property
    def format(self) -> DatasetFormat: ...
    @property
    def rows(self) -> int: ...
    @property
    def arrays(self) -> tuple[ArraySpec, ...]: ...
    @property
    def labelled(self) -> bool: ...
    @property
    def labels(self) -> ArraySpec | None: ...
    @property
    def classes(self) -> tuple[str, ...]: ...

    def name_of(self, number: int) -> str:
        """Say what row `number` is in the user's file: `Row 7`, or `Image` and its path."""
        ...

    def read(self, numbers: Sequence[int]) -> Iterator[Row]:
        """Yield the rows with these ascending numbers.

        Raises:
            UploadUnreadable: the file ends early, or what is in it is broken.
        """
        ...
