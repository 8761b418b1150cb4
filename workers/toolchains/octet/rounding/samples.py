"""A layer's inputs and outputs at random positions of the calibration rows, bounded in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.toolchains.octet.rounding.forms import Floats, Form

Shape = tuple[int, int, int]

MOST_BYTES = 48 * 2**20
"""Of the samples of one layer. With wide layers it is this that bounds how many positions there are."""

HELD_OUT = 8
"""Every eighth batch is kept from learning, to compare what was learned with rounding to nearest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """
    Attributes:
        x: [positions, groups, k], what meets the weight.
        y: [positions, groups, outputs], what the float layer gives there.
        held_x, held_y: the same, kept from learning; those learned on where there is one batch only.
    """

    x: Floats
    y: Floats
    held_x: Floats
    held_y: Floats


def sample(form: Form, batches: Iterator[tuple[Floats, Floats]], *, count: int, seed: int, shape: Shape) -> Samples:
    """Pick positions at random, as many of every batch, until all batches together fill `MOST_BYTES`.

    `batches` yields input and output of the layer, `count` times; `shape` is that of its weight, [groups, outputs, k].
    """
    groups, outputs, k = shape
    most = max(1, MOST_BYTES // (4 * groups * (k + outputs)) // count)
    rng = np.random.default_rng(seed)
    held = set(held_out(count))
    learn, keep = _Heap(most * (count - len(held)), shape), _Heap(most * len(held), shape)
    for number, (x, y) in enumerate(batches):
        picked = pick(form.positions(y), most=most, rng=rng)
        heap = keep if number in held else learn
        heap.add(form.patches(x, y.shape, picked), form.outputs(y, picked))
    last = keep if held else learn
    return Samples(
        x=learn.x[: learn.size], y=learn.y[: learn.size], held_x=last.x[: last.size], held_y=last.y[: last.size]
    )


def held_out(count: int) -> list[int]:
    """Return which of `count` batches are kept from learning: every eighth, or the last of fewer."""
    return list(range(HELD_OUT - 1, count, HELD_OUT)) or ([count - 1] if count > 1 else [])


def pick(positions: int, *, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return some positions, each once, in order."""
    if positions <= most:
        return np.arange(positions)
    return np.sort(rng.choice(positions, size=most, replace=False, shuffle=False))


class _Heap:
    """Room for samples, taken from the system only as it fills."""

    def __init__(self, most: int, shape: Shape) -> None:
        groups, outputs, k = shape
        self.x = np.empty((most, groups, k), np.float32)
        self.y = np.empty((most, groups, outputs), np.float32)
        self.size = 0

    def add(self, x: Floats, y: Floats) -> None:
        rows = slice(self.size, self.size + len(x))
        self.x[rows] = x
        self.y[rows] = y.reshape(len(y), *self.y.shape[1:])
        self.size = rows.stop
