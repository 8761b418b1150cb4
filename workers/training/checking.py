"""Whether others answer like the program: ONNX Runtime before training, the engine after it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.domain.errors import DatasetUnfit, ToolchainFailed
from workers.openvino_engine import OpenVinoSession
from workers.toolchains.finish import ONNXRUNTIME_ERRORS
from workers.toolchains.octet.rounding.playback import open_session
from workers.training.losses import is_classes
from workers.training.program import Program

CHECKED_ROWS = 16

_LEAST_SQNR_DB = 20.0
"""Torch and ONNX Runtime may round a value at the edge of two steps to either side; a wrong operator errs far more."""
_SAME = 0.05
"""How far apart answers to a row that are no classes count as the same: root mean square over that of the answer."""


def answers(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a program answers when it does not train."""
    program.eval()
    with torch.no_grad():
        return program(inputs)  # type: ignore[no-any-return] # what `forward` returns


def check_numbers(program: Program, rows: Mapping[str, Tensor]) -> None:
    """Compare torch's answers with ONNX Runtime's, which runs the same graph as it is written.

    Raises:
        ToolchainFailed: they are not the same.
        DatasetUnfit: the graph cannot answer the rows.
    """
    found, outputs = answers(program, rows), program.outputs
    try:
        given = open_session(program.model).run(outputs, {name: each.numpy() for name, each in rows.items()})
    except ONNXRUNTIME_ERRORS as error:
        raise DatasetUnfit(f"The model cannot answer the training rows ({str(error)[:200]}).") from error
    for name, wanted in zip(outputs, given, strict=True):
        noise, energy = noise_and_energy(found[name].numpy(), wanted)
        if not noise <= energy * 10 ** (-_LEAST_SQNR_DB / 10):
            raise ToolchainFailed(
                f"Torch and ONNX Runtime do not agree on the output {name[:80]!r} of the quantized graph (noise "
                f"{noise:.2g} of {energy:.2g}): it cannot be trained; take ptq_static."
            )


def engine_answer(session: OpenVinoSession, inputs: Mapping[str, Tensor], output: str) -> NDArray[Any]:
    """Return a copy of what the engine gives for one output."""
    found: NDArray[Any] = session.infer({name: tensor.numpy() for name, tensor in inputs.items()})[output].copy()
    return found


def noise_and_energy(found: NDArray[Any], wanted: NDArray[Any]) -> tuple[float, float]:
    """Return the squared difference of two tensors and the square of the second, summed."""
    exact = wanted.astype(np.float64)
    return float(np.square(found.astype(np.float64) - exact).sum()), float(np.square(exact).sum())


def alike(mine: torch.Tensor, theirs: torch.Tensor, *, values: bool) -> int:
    """Return how many rows two forms answer alike: with the same class, or with nearly the same values.

    Args:
        values: the answers are real numbers, and no classes even where they look like it.
    """
    if is_classes(mine) and not values:
        return int((mine.argmax(1) == theirs.argmax(1)).sum())
    a, b = (each.reshape(len(each), -1).double() for each in (mine, theirs))
    return int(((a - b).norm(dim=1) <= _SAME * b.norm(dim=1)).sum())
