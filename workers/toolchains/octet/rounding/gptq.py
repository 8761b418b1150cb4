"""GPTQ: weights rounded column by column, each error made up for by the columns still to come (Frantar et al. 2022)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.domain.errors import ToolchainFailed
from workers.toolchains.octet.rounding.forms import Floats, Form
from workers.toolchains.octet.rounding.samples import pick

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean (arXiv:2210.17323, section 3.3, step 3)."""

COLUMNS = 128
"""How many columns are rounded before the others are brought up to date (section 3.3, step 2)."""

MOST_POSITIONS = 2**16
"""Of all rows together; more add nothing to a matrix of this kind."""

MOST_INPUTS = 4096
"""Of one Hessian: those of a wider layer are cut into parts that know nothing of each other, for memory's sake."""

_MOST_PARTS = 16
_PATCH_BYTES = 16 * 2**20


def hessian(form: Form, batches: Iterator[tuple[Floats, tuple[int, ...]]], *, count: int, seed: int) -> Floats:
    """Return 2 X X^T as [groups * parts, k / parts, k / parts], the mean over output positions.

    Memory does not grow with the rows. Parts are 1 but for wide layers, see `parts_of`.

    `batches` yields the layer's input and the shape of its output, `count` times.
    """
    rng = np.random.default_rng(seed)
    total: Tensor | None = None
    positions = 0
    for x, y_shape in batches:
        picked = pick(_positions(form, y_shape), most=max(1, MOST_POSITIONS // count), rng=rng)
        for part in _parts(form, x, y_shape, picked):
            parts = parts_of(part.shape[2])
            columns = torch.from_numpy(part.reshape(len(part), part.shape[1] * parts, -1)).transpose(0, 1)
            if total is None:
                total = torch.zeros(len(columns), columns.shape[2], columns.shape[2])
            total.baddbmm_(columns.transpose(1, 2), columns)
            positions += columns.shape[1]
    if total is None:
        raise ValueError("no batch")
    found: Floats = total.mul_(2 / positions).numpy()
    return found


def parts_of(k: int) -> int:
    """Return into how many equal parts the inputs of a layer are cut: 1 where no small number of parts divides them."""
    fit = [parts for parts in range(1, _MOST_PARTS + 1) if k % parts == 0 and k // parts <= MOST_INPUTS]
    return fit[0] if fit else 1


def in_parts(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return [groups, outputs, k] as [groups * parts, outputs, k / parts]."""
    groups, outputs, k = matrix.shape
    parts = parts_of(k)
    return matrix.reshape(groups, outputs, parts, -1).swapaxes(1, 2).reshape(groups * parts, outputs, -1)


def joined(cut: NDArray[Any], *, groups: int) -> NDArray[Any]:
    """Undo `in_parts`."""
    parts, outputs = len(cut) // groups, cut.shape[1]
    return cut.reshape(groups, parts, outputs, -1).swapaxes(1, 2).reshape(groups, outputs, -1)


def inverse_factor(h: Floats) -> Tensor:
    """Turn one Hessian [k, k], in its own memory, into the upper Cholesky factor of its damped inverse.

    With thousands of inputs it is by far the largest thing that learning holds: there are never more than two.

    Raises:
        ToolchainFailed: the inputs that the Hessian is made of are not finite.
    """
    matrix = torch.from_numpy(h)
    _factor(matrix, upper=False, damping=(DAMPING, 10 * DAMPING, 100 * DAMPING))
    matrix.copy_(torch.cholesky_inverse(matrix))
    _factor(matrix, upper=True, damping=(0, 1e-4, 1e-2))  # exact but for float32
    return matrix


def gptq(
    weight: Floats, scale: Floats, zero_point: NDArray[np.int32], *, bounds: tuple[int, int], factor: Tensor
) -> NDArray[np.int32]:
    """Return the integers of one weight [outputs, k] with scales and zero points of its shape (algorithm 1).

    The error that a column's rounding makes is spread over the later columns by the rows of `factor`, what
    `inverse_factor` gives. A row that comes out with a larger error than rounding to nearest is rounded to nearest.
    """
    exact = torch.from_numpy(np.array(weight, np.float32))
    steps, zeros = torch.from_numpy(np.array(scale, np.float32)), torch.from_numpy(np.array(zero_point, np.float32))
    rounded = _compensated(exact.clone(), steps, zeros, bounds=bounds, factor=factor)
    nearest = _nearest(exact, steps, zeros, bounds)
    learned, plain = (_errors((each - zeros) * steps - exact, factor) for each in (rounded, nearest))
    chosen = torch.where((learned <= plain)[:, None], rounded, nearest)
    integers: NDArray[np.int32] = chosen.to(torch.int32).numpy()
    return integers


def _compensated(left: Tensor, steps: Tensor, zeros: Tensor, *, bounds: tuple[int, int], factor: Tensor) -> Tensor:
    rounded = torch.empty_like(left)
    for start in range(0, left.shape[1], COLUMNS):
        end = min(start + COLUMNS, left.shape[1])
        errors = torch.empty(len(left), end - start)
        for at in range(start, end):
            rounded[:, at] = _nearest(left[:, at], steps[:, at], zeros[:, at], bounds)
            value = (rounded[:, at] - zeros[:, at]) * steps[:, at]
            errors[:, at - start] = (left[:, at] - value) / factor[at, at]
            left[:, at:end] -= errors[:, at - start, None] * factor[at, at:end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return rounded


def _errors(off: Tensor, factor: Tensor) -> Tensor:
    """Return, row by row, the squared error on the layer's output that a weight off by so much leaves.

    The damped Hessian is the inverse of factor^T factor. What damping adds is least for rounding to nearest, so that
    what is no worse here is no worse without it.
    """
    through: Tensor = torch.linalg.solve_triangular(factor, off, upper=True, left=False)
    return through.square().sum(1)


def _factor(matrix: Tensor, *, upper: bool, damping: tuple[float, ...]) -> None:
    """Replace a matrix by its Cholesky factor, with the least of some shares of its mean added to the diagonal."""
    mean, added = float(matrix.diagonal().mean()), 0.0
    for share in damping:
        wanted = share * mean if mean > 0 else 1.0
        matrix.diagonal().add_(wanted - added)
        added = wanted
        factor, failed = torch.linalg.cholesky_ex(matrix, upper=upper)
        if not int(failed) and bool(factor.isfinite().all()):
            matrix.copy_(factor)
            return
    raise ToolchainFailed("GPTQ meets inputs of a layer that are not finite: set rounding to nearest.")


def _nearest(weight: Tensor, steps: Tensor, zeros: Tensor, bounds: tuple[int, int]) -> Tensor:
    return (torch.round(weight / steps) + zeros).clamp(*bounds)


def _positions(form: Form, y_shape: tuple[int, ...]) -> int:
    return form.positions(np.broadcast_to(np.float32(0), y_shape))


def _parts(form: Form, x: Floats, y_shape: tuple[int, ...], picked: NDArray[np.int64]) -> Iterator[Floats]:
    one = form.patches(x, y_shape, picked[:1])
    most = max(1, _PATCH_BYTES // one.nbytes)
    for start in range(0, len(picked), most):
        yield form.patches(x, y_shape, picked[start : start + most])
