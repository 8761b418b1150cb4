"""Running the observed program on the calibration rows, a few at a time: memory does not follow their number."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from app.domain.recipes import PtqStatic
from app.domain.tensors import Signature
from workers import evaluation_mode, torch_programs
from workers.data.batches import Tensors, batches
from workers.stage_records.common import Progress, RowSource
from workers.toolchains.torchao.observers import Settling

SHARE = 0.7
"""How much of the technique's time goes into calibrating, for the progress shown."""
_MOST_ROWS_AT_ONCE = 16
# Many small rows share a call; of large ones each is a call of its own, for memory follows what runs at once.
_VALUES_AT_ONCE = 2**17


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An uploaded program and what its inputs are called."""

    exported: torch.export.ExportedProgram
    inputs: dict[str, torch.Tensor]

    @classmethod
    def load(cls, path: Path) -> "Program":
        """Load a `.pt2` and put it into evaluation mode, as the import did."""
        exported = torch_programs.load(path)
        evaluation_mode.take(exported)
        return cls(exported=exported, inputs=torch_programs.user_inputs(exported))

    @property
    def fixed_rows(self) -> int | None:
        """How many rows it takes at once, always; None if any number."""
        sizes = [tensor.shape[0] if tensor.dim() else None for tensor in self.inputs.values()]
        whole = {size for size in sizes if type(size) is int}
        return whole.pop() if len(whole) == 1 and all(type(size) is int for size in sizes) else None

    def arguments(self, leaves: list[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put tensors, one for each input, where the module's `forward` takes them."""
        args, kwargs = pytree.tree_unflatten(leaves, self.exported.call_spec.in_spec)
        return args, kwargs


def calibrate(
    module: GraphModule, program: Program, source: RowSource, signature: Signature, *, scratch: Path, progress: Progress
) -> None:
    """Show every row to the observers.

    Raises:
        DatasetUnfit: a row that the model does not take.
    """
    done, total = 0, len(source.rows)
    fixed = program.fixed_rows if signature.batched else None
    at_once = fixed or _rows_at_once(program)
    with torch.no_grad():
        for batch in batches(source, signature, scratch=scratch, size=at_once):
            arrays = _filled(batch.inputs, signature, rows=fixed) if fixed else batch.inputs
            args, kwargs = program.arguments([torch.tensor(arrays[spec.name]) for spec in signature.inputs])
            module(*args, **kwargs)
            done += len(batch.rows)
            progress(SHARE * done / total, f"calibrating: {done} of {total} rows")


def _rows_at_once(program: Program) -> int:
    tensors = list(program.inputs.values())
    values = sum(math.prod(size for size in tensor.shape[1:] if isinstance(size, int)) for tensor in tensors)
    most = min(_MOST_ROWS_AT_ONCE, torch_programs.most_rows(program.exported, tensors))
    return max(1, min(most, _VALUES_AT_ONCE // max(1, values)))


def settle(module: GraphModule, recipe: PtqStatic) -> None:
    """Let every observer choose its data type from the range it saw.

    Raises:
        ToolchainFailed: the rows gave values that are no numbers.
    """
    for observer in _observers(module):
        observer.settle(recipe.activations, recipe.activation_dtype)


def _observers(module: GraphModule) -> Iterator[Settling]:
    return (each for each in module.modules() if isinstance(each, Settling))


def _filled(arrays: Tensors, signature: Signature, *, rows: int) -> Tensors:
    """Fill the last batch up with its last row, which adds no value that was not there."""
    filled = {}
    for spec in signature.inputs:
        array, axis = arrays[spec.name], spec.batch_axis or 0
        missing = rows - array.shape[axis]
        last = array.take([-1], axis=axis)
        filled[spec.name] = np.concatenate([array, *[last] * missing], axis=axis) if missing else array
    return filled
