"""AdaRound: the rounding of one layer's weight learned on what the layer gives out (Nagel et al. 2020)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.toolchains.octet.rounding.activations import Activation
from workers.toolchains.octet.rounding.forms import Floats, Form
from workers.toolchains.octet.rounding.layers import Grid
from workers.toolchains.octet.rounding.samples import Samples
from workers.toolchains.octet.rounding.soft import Effort, SoftWeight, anneal

POSITIONS = 256
"""How many output positions one step sees."""

MOST_WEIGHTS = 2**20
"""How many weights are learned at once: output channels do not depend on each other, so memory stays bounded."""

_EVALUATED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One layer to round: min || f(y) - f(x w + bias) ||^2 (arXiv:2004.10568, equation 25, asymmetric).

    Attributes:
        bias: [groups, outputs].
        activation: f, None for none.
    """

    form: Form
    weight: Floats
    grid: Grid
    bias: Floats
    activation: Activation | None
    samples: Samples


def adaround(task: Task, effort: Effort, *, seed: int) -> NDArray[np.int32]:
    """Return the learned integers of a layer's weight, each one of the two next to `weight / scale`.

    An output channel that gives a larger error than nearest rounding on the rows held out is rounded to nearest.
    """
    nearest = task.form.matrix(task.grid.nearest(task.weight))
    learned = np.array(nearest)
    for group in _slices(nearest.shape):
        learned[group] = _learned(task, group, effort, seed=seed)
    better = channel_errors(task, learned) < channel_errors(task, nearest)
    chosen = np.where(better[:, :, np.newaxis], learned, nearest)
    return np.ascontiguousarray(task.form.weight(chosen))


def channel_errors(task: Task, matrix: NDArray[np.int32]) -> Floats:
    """Return [groups, outputs]: the squared error of each output channel on the positions held out."""
    value = torch.from_numpy(_part(task, task.grid.value(_spread(task, matrix)), (slice(None), slice(None))))
    samples, bias = task.samples, torch.from_numpy(task.bias)
    total = torch.zeros(value.shape[:2])
    for at in range(0, len(samples.held_x), _EVALUATED):
        rows = slice(at, at + _EVALUATED)
        given = _output(torch.from_numpy(samples.held_x[rows]), value, bias, task.activation)
        target = _activated(torch.from_numpy(samples.held_y[rows]), task.activation)
        total += (given - target).square().sum(0)
    errors: Floats = total.numpy()
    return errors


def _learned(task: Task, at: tuple[slice, slice], effort: Effort, *, seed: int) -> NDArray[np.int32]:
    weight, grid = _part(task, task.weight, at), _grid_part(task, at)
    soft = SoftWeight(weight, grid)
    samples, bias = task.samples, torch.from_numpy(task.bias[at])
    x = torch.from_numpy(samples.x[:, at[0]])
    y = _activated(torch.from_numpy(samples.y[:, at[0], at[1]]), task.activation)
    norm = _rounding_noise(x, torch.from_numpy(weight), torch.from_numpy(grid.value(grid.nearest(weight))), bias, task)
    if norm == 0:
        return grid.nearest(weight)
    picks = torch.Generator().manual_seed(seed)

    def loss(values: Sequence[Tensor]) -> Tensor:
        rows = torch.randint(len(x), (min(POSITIONS, len(x)),), generator=picks)
        given = _output(x[rows], values[0], bias, task.activation)
        return (given - y[rows]).square().mean() / norm

    anneal([soft], loss, effort)
    return soft.integers(grid)


def _rounding_noise(x: Tensor, weight: Tensor, rounded: Tensor, bias: Tensor, task: Task) -> float:
    """Return the mean squared error that rounding to nearest adds: the unit in which the loss counts."""
    some = x[:: max(1, len(x) // _EVALUATED)]
    exact, coarse = (_output(some, each, bias, task.activation) for each in (weight, rounded))
    return float((exact - coarse).square().mean())


def _output(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation | None) -> Tensor:
    """Return [positions, groups, outputs] of x [positions, groups, k] and a weight [groups, outputs, k]."""
    product = torch.baddbmm(bias.unsqueeze(1), x.transpose(0, 1), weight.transpose(1, 2))
    return _activated(product.transpose(0, 1), activation)


def _activated(values: Tensor, activation: Activation | None) -> Tensor:
    return values if activation is None else activation(values)


def _slices(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Cut [groups, outputs, k] into parts of at most `MOST_WEIGHTS`."""
    groups, outputs, k = shape
    most_groups = max(1, MOST_WEIGHTS // (outputs * k))
    most_outputs = max(1, MOST_WEIGHTS // k)
    for group in range(0, groups, most_groups):
        for output in range(0, outputs, most_outputs):
            yield slice(group, group + most_groups), slice(output, output + most_outputs)


def _part(task: Task, values: Floats, at: tuple[slice, slice]) -> Floats:
    return np.ascontiguousarray(task.form.matrix(values)[at], np.float32)


def _grid_part(task: Task, at: tuple[slice, slice]) -> Grid:
    shape = task.weight.shape
    return Grid(
        scale=_part(task, np.broadcast_to(task.grid.scale, shape), at),
        zero_point=task.form.matrix(np.broadcast_to(task.grid.zero_point, shape))[at].astype(np.int32),
        qmin=task.grid.qmin,
        qmax=task.grid.qmax,
    )


def _spread(task: Task, matrix: NDArray[np.int32]) -> NDArray[np.int32]:
    integers: NDArray[np.int32] = task.form.weight(matrix)
    return integers
