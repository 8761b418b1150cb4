"""Whether a row's answer depends on the rows beside it in a batch, as scales taken over a whole tensor make it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.evidence import Invariance
from app.domain.tensors import Signature
from workers.data.batches import Tensors
from workers.measure.engine import Session

LEAST_ROWS = 2
_SMALLER = 2.0**-4
"""A power of two: neighbours get smaller without rounding."""

Array = NDArray[Any]
Neighbours = Callable[[Array], Array]


def invariance(session: Session, signature: Signature, inputs: Tensors) -> Invariance | None:
    """Answer the same rows at the same places of batches of the same size, beside other neighbours.

    Batch size and place being equal, the engine runs the same kernels in the same order, and answers to the bit what it
    answered before unless it looks at other rows. First every second row stays and its neighbours change, then the
    others stay. The neighbours become each other, and in float inputs each other's extremes and fractions: never
    more than what was seen.

    Args:
        inputs: one batch of real rows.

    Returns:
        None for a model that does not count rows, or a batch of fewer than two.

    Raises:
        ToolchainFailed: the engine cannot run a batch.
    """
    rows = _rows(signature, inputs)
    if rows < LEAST_ROWS:
        return None
    axes = [spec.batch_axis or 0 for spec in signature.outputs]
    before = [np.moveaxis(output, axis, 0) for output, axis in zip(session.run(inputs), axes, strict=True)]
    same, largest = True, 0.0
    for kept, changed in _batches(signature, inputs, rows=rows):
        after = [np.moveaxis(output, axis, 0) for output, axis in zip(session.run(changed), axes, strict=True)]
        for one, other in zip(before, after, strict=True):
            same &= one[kept].tobytes() == other[kept].tobytes()
            largest = max(largest, _difference(one[kept], other[kept], scale=one))
    return Invariance(invariant=same, largest_difference=largest, rows=rows, batch_size=rows)


def _rows(signature: Signature, inputs: Tensors) -> int:
    if not signature.batched:
        return 0
    return min(int(inputs[spec.name].shape[spec.batch_axis or 0]) for spec in signature.inputs)


def _batches(signature: Signature, inputs: Tensors, *, rows: int) -> Iterator[tuple[NDArray[np.bool_], Tensors]]:
    """Yield which rows stay, and a batch in which the others are replaced."""
    even = np.arange(rows) % 2 == 0
    for kept in (even, ~even):
        for neighbours in (_moved_on, _extreme, _small):
            changed = {
                spec.name: _replaced(inputs[spec.name], neighbours, kept, axis=spec.batch_axis or 0)
                for spec in signature.inputs
            }
            if any(not np.array_equal(changed[name], inputs[name]) for name in inputs):
                yield kept, changed


def _replaced(array: Array, neighbours: Neighbours, kept: NDArray[np.bool_], *, axis: int) -> Array:
    rows = np.moveaxis(array, axis, 0).copy()
    rows[~kept] = neighbours(rows)[~kept]
    return np.ascontiguousarray(np.moveaxis(rows, 0, axis))


def _moved_on(rows: Array) -> Array:
    """Put another row in each place: the next, which is one of those that stay."""
    return np.roll(rows, 1, axis=0)


def _extreme(rows: Array) -> Array:
    """Fill each place with the least and the largest value in turns. Numbers that name something are only moved."""
    if not _is_float(rows) or rows.size == 0:
        return _moved_on(rows)
    made = np.empty_like(rows)
    flat = made.reshape(-1)
    flat[::2], flat[1::2] = rows.max(), rows.min()
    return made


def _small(rows: Array) -> Array:
    return rows * rows.dtype.type(_SMALLER) if _is_float(rows) else _moved_on(rows)


def _is_float(rows: Array) -> bool:
    return rows.dtype.kind == "f" or rows.dtype.name == "bfloat16"


def _difference(one: Array, other: Array, *, scale: Array) -> float:
    """Return the largest difference over the largest value of the whole output; classes that differ count as 1."""
    if not _is_float(one):
        return 0.0 if np.array_equal(one, other) else 1.0
    a, b, c = (array.astype(np.float64) for array in (one, other, scale))
    finite = np.isfinite(a) & np.isfinite(b)
    largest = float(np.abs(c[np.isfinite(c)]).max(initial=0.0))
    difference = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    return difference / largest if largest > 0 else difference
