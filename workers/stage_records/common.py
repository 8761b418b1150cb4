"""What several stages are told: which rows, where to write, how to say how far they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from app.domain.datasets import DatasetFormat
from app.domain.preprocessing import ImagePreprocessing

FLOAT32_OUTPUT: Final = "out/float32.onnx"
SAMPLES_OUTPUT: Final = "out/samples.npz"
VARIANT_OUTPUT: Final = "out/variant.onnx"
"""Where stages write, always: a name that a hostile stage could choose would be one more thing to check."""

MAX_LIBRARIES = 64

Progress = Callable[[float, str], None]
"""Called by a stage with the share done, 0 to 1, and a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """Rows of a dataset, ready to become a model's input.

    Attributes:
        path: the dataset's file.
        rows: which rows, ascending.
    """

    path: str
    format: DatasetFormat
    rows: tuple[int, ...]
    preprocessing: ImagePreprocessing | None


def check_libraries(libraries: dict[str, str]) -> None:
    """Refuse a claim of more libraries than can be real.

    Raises:
        ValueError: there are more than `MAX_LIBRARIES`.
    """
    if len(libraries) > MAX_LIBRARIES:
        raise ValueError(f"A stage names {len(libraries)} libraries, but at most {MAX_LIBRARIES} can be real.")
