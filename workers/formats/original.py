"""An upload that has been read: its ONNX graph, and a way to ask the original for answers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input of the original.

    Attributes:
        shape: one that the original takes; of a symbolic batch axis any size will do.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def draw(self, rng: np.random.Generator, *, rows: int | None) -> Array:
        """Draw random values: normal for floats, 0 and 1 for the rest, since larger numbers may index past a table.

        Args:
            rows: size of the first axis; None leaves it.
        """
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        if self.dtype.kind == "f":
            return rng.standard_normal(shape).astype(self.dtype)
        return rng.integers(0, 2, shape).astype(self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What a reader makes of an upload.

    Attributes:
        graph: standard operators, embedded weights; its inputs and outputs are named as in `inputs` and `answer`.
        name: what answers, such as `torch 2.13.0`.
        batch: the size its inputs' first axis is fixed to; "symbolic"; or None if they share no such axis.
        most_rows: the largest batch it takes.
        was_training: it was exported in training mode; graph and answers are those of evaluation mode.
        answer: run the original on arrays by input name; answers by output name.
    """

    graph: onnx.ModelProto
    name: str
    inputs: tuple[Input, ...]
    batch: int | Literal["symbolic"] | None
    answer: Callable[[Arrays], Arrays]
    most_rows: int = 2**31 - 1
    was_training: bool = False

    def draw(self, rng: np.random.Generator, *, rows: int | None = None) -> Arrays:
        """Draw random values for every input."""
        return {each.name: each.draw(rng, rows=rows) for each in self.inputs}


Reader = Callable[[Path, Path], Original]
"""A format's entry: the upload and a folder for temporary files, to what they hold."""


def shared_batch(first_sizes: list[int | None]) -> int | None:
    """Return the size that every input has on its first axis; None if they differ or one has no axis."""
    found = set(first_sizes)
    return found.pop() if len(found) == 1 else None
