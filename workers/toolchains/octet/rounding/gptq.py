"""GPTQ: weights rounded column by column, each error made up for by the columns still to come (Frantar et al. 2022)."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.toolchains.octet.rounding.forms import Floats, Form
from workers.toolchains.octet.rounding.samples import pick

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean (arXiv:2210.17323, section 3.3, step 3)."""

COLUMNS = 128
"""How many columns are rounded before the others are brought up to date (section 3.3, step 2)."""

MOST_POSITIONS = 2**16
"""Of all rows together; more add nothing to a matrix of this kind."""

_PATCH_BYTES = 16 * 2**20


def hessian(form: Form, batches: Iterator[tuple[Floats, tuple[int, ...]]], *, count: int, seed: int) -> Floats:
    """Return 2 X X^T as [groups, k, k], the mean over output positions; memory does not grow with the rows.

    `batches` yields the layer's input and the shape of its output, `count` times.
    """
    rng = np.random.default_rng(seed)
    total: Tensor | None = None
    positions = 0
    for x, y_shape in batches:
        picked = pick(_positions(form, y_shape), most=max(1, MOST_POSITIONS // count), rng=rng)
        for part in _parts(form, x, y_shape, picked):
            columns = torch.from_numpy(part).transpose(0, 1)
            if total is None:
                total = torch.zeros(len(columns), columns.shape[2], columns.shape[2])
            total.baddbmm_(columns.transpose(1, 2), columns)
            positions += columns.shape[1]
    if total is None:
        raise ValueError("no batch")
    found: Floats = (total * (2 / positions)).numpy()
    return found


def gptq(weight: Floats, scale: Floats, zero_point: Floats, *, bounds: tuple[int, int], h: Floats) -> NDArray[np.int32]:
    """Return the integers of one weight [outputs, k] with scales and zero points of its shape (algorithm 1).

    `h` is its Hessian [k, k]. The error that a column's rounding makes is spread over the later columns by the rows of
    the Cholesky factor of the damped inverse. A row whose error comes out larger than nearest rounding's keeps nearest.
    """
    factor = _inverse_factor(torch.from_numpy(h))
    left = torch.from_numpy(np.array(weight, np.float32))
    steps, zeros = torch.from_numpy(np.array(scale, np.float32)), torch.from_numpy(np.array(zero_point, np.float32))
    rounded = torch.empty_like(left)
    for start in range(0, left.shape[1], COLUMNS):
        end = min(start + COLUMNS, left.shape[1])
        errors = torch.empty(len(left), end - start)
        for at in range(start, end):
            column = _nearest(left[:, at], steps[:, at], zeros[:, at], bounds)
            rounded[:, at] = column
            value = (column - zeros[:, at]) * steps[:, at]
            errors[:, at - start] = (left[:, at] - value) / factor[at, at]
            left[:, at:end] -= errors[:, at - start, None] * factor[at, at:end]
        left[:, end:] -= errors @ factor[start:end, end:]
    exact = torch.from_numpy(np.array(weight, np.float32))
    plain = _nearest(exact, steps, zeros, bounds)
    learned, nearest = (_errors((each - zeros) * steps - exact, torch.from_numpy(h)) for each in (rounded, plain))
    chosen = torch.where((learned <= nearest)[:, None], rounded, plain)
    integers: NDArray[np.int32] = chosen.to(torch.int32).numpy()
    return integers


def _errors(off: Tensor, h: Tensor) -> Tensor:
    """Return, row by row, the squared error that a weight off by so much leaves on the layer's output."""
    return ((off @ h) * off).sum(1)


def _nearest(weight: Tensor, steps: Tensor, zeros: Tensor, bounds: tuple[int, int]) -> Tensor:
    return (torch.round(weight / steps) + zeros).clamp(*bounds)


def _inverse_factor(h: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped Hessian; zero inputs are damped too."""
    damped = h.clone()
    diagonal = damped.diagonal()
    mean = float(diagonal.mean())
    diagonal += DAMPING * mean if mean > 0 else 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _positions(form: Form, y_shape: tuple[int, ...]) -> int:
    return form.positions(np.broadcast_to(np.float32(0), y_shape))


def _parts(form: Form, x: Floats, y_shape: tuple[int, ...], picked: NDArray[np.int64]) -> Iterator[Floats]:
    one = form.patches(x, y_shape, picked[:1])
    most = max(1, _PATCH_BYTES // one.nbytes)
    for start in range(0, len(picked), most):
        yield form.patches(x, y_shape, picked[start : start + most])
