"""Block reconstruction: the rounding of all layers of a block learned on what the block gives out (Li et al. 2021)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.toolchains.octet.rounding.activations import Activation
from workers.toolchains.octet.rounding.blocks import Block
from workers.toolchains.octet.rounding.layers import Floats, Grid
from workers.toolchains.octet.rounding.operators import run
from workers.toolchains.octet.rounding.playback import Playback, constant
from workers.toolchains.octet.rounding.samples import held_out
from workers.toolchains.octet.rounding.soft import Effort, SoftWeight, anneal
from workers.toolchains.octet.rounding.wiring import Wiring, used_by

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """A block's nodes in torch, without those that give it constants.

    Attributes:
        weights: the tensors that layers multiply with, in the order of the block's layers.
        takes: the tensors that come from outside.
    """

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, Tensor]
    weights: tuple[str, ...]
    takes: tuple[str, ...]
    output: str

    def __call__(self, given: Arrays, weights: Sequence[Tensor]) -> Tensor:
        """Return the block's output.

        Raises:
            NotTaken: an operator is not in the table.
        """
        inputs = {name: as_tensor(given[name]) for name in self.takes}
        known = {**self.constants, **inputs, **dict(zip(self.weights, weights, strict=True))}
        return run(self.nodes, known, self.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTask:
    """One block to round: min || f(y) - f(block(x)) ||^2, the mean over its output's elements.

    It is the plain squared error and not the paper's, which weighs every element by its squared gradient (equation
    10): that takes labels or a loss, and the whole graph in torch; the rows here have no labels.

    Attributes:
        target: the name of the block's output in the float graph.
        activation: f, where it follows the output in the float graph and not in the block.
        together: how many batches one step sees.
    """

    circuit: Circuit
    weights: tuple[Floats, ...]
    grids: tuple[Grid, ...]
    quantized: Playback
    original: Playback
    target: str
    activation: Activation | None
    together: int


def circuit_of(block: Block, model: onnx.ModelProto, wiring: Wiring) -> Circuit:
    """Take a block out of the quantized graph."""
    nodes = [node for node in wiring.nodes[block.start : block.end] if wiring.moving(node)]
    made = {name for node in nodes for name in node.output}
    used = {name for node in nodes for name in used_by(node) if wiring.known(name)} - made
    weights = tuple(layer.dequantized for layer in block.layers)
    fixed = (used & wiring.constants) - set(weights)
    return Circuit(
        nodes=tuple(nodes),
        constants={name: as_tensor(constant(model, wiring, name)) for name in sorted(fixed)},
        weights=weights,
        takes=tuple(sorted(used - wiring.constants)),
        output=str(block.output),
    )


def brecq(task: BlockTask, effort: Effort, *, seed: int) -> tuple[NDArray[np.int32], ...]:
    """Return the learned integers of a block's weights; rounded to nearest where that errs less on rows held out."""
    nearest = tuple(grid.nearest(weight) for weight, grid in zip(task.weights, task.grids, strict=True))
    held = held_out(task.quantized.batches)
    learned_on = [at for at in range(task.quantized.batches) if at not in held]
    exact = [torch.from_numpy(np.ascontiguousarray(weight)) for weight in task.weights]
    norm = _noise(task, exact, _values(task, nearest), learned_on[0])
    if norm == 0:
        return nearest
    soft = [SoftWeight(weight, grid) for weight, grid in zip(task.weights, task.grids, strict=True)]
    rng = np.random.default_rng(seed)

    def loss(values: Sequence[Tensor]) -> Tensor:
        picked = rng.choice(learned_on, size=min(task.together, len(learned_on)), replace=False)
        return torch.stack([_error(task, values, int(batch)) for batch in picked]).mean() / norm

    anneal(soft, loss, effort)
    learned = tuple(each.integers(grid) for each, grid in zip(soft, task.grids, strict=True))
    judged = held or learned_on
    return min((nearest, learned), key=lambda integers: _mean_error(task, _values(task, integers), judged))


def _error(task: BlockTask, weights: Sequence[Tensor], batch: int) -> Tensor:
    given = task.circuit(task.quantized.read(batch), weights)
    target = as_tensor(task.original.read(batch)[task.target])
    if task.activation is not None:
        given, target = task.activation(given), task.activation(target)
    return (given - target).square().mean()


def _mean_error(task: BlockTask, weights: Sequence[Tensor], batches: Sequence[int]) -> float:
    with torch.no_grad():
        return sum(float(_error(task, weights, batch)) for batch in batches) / len(batches)


def _noise(task: BlockTask, exact: Sequence[Tensor], rounded: Sequence[Tensor], batch: int) -> float:
    """Return the mean squared error that rounding to nearest adds to the block's output."""
    with torch.no_grad():
        given = task.quantized.read(batch)
        return float((task.circuit(given, exact) - task.circuit(given, rounded)).square().mean())


def _values(task: BlockTask, integers: Sequence[NDArray[np.int32]]) -> list[Tensor]:
    pairs = zip(integers, task.grids, strict=True)
    return [torch.from_numpy(np.ascontiguousarray(grid.value(each))) for each, grid in pairs]


def as_tensor(array: NDArray[np.generic]) -> Tensor:
    """Return a tensor of its own: what ONNX hands out may not be written to."""
    return torch.tensor(array)
