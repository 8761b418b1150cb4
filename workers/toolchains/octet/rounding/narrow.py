"""Grids of 4 and 2 bits: weights that stay stored as int8, so that the engine keeps its int8 kernels."""

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from workers.toolchains.octet.rounding.layers import Floats, Grid, Layer, read_grid, write_integers
from workers.toolchains.octet.rounding.wiring import Wiring

Bounds = tuple[int, int]

RATIOS: dict[int, NDArray[np.float32]] = {
    4: np.linspace(1.0, 0.4, 31, dtype=np.float32),
    2: np.linspace(1.0, 0.05, 96, dtype=np.float32),
}
"""By bits, shares of the full range that are tried.

At 4 bits the least error of bell-shaped weights lies at 0.5 to 0.9; at 2 bits, where the full range takes the largest
weight for the one step above zero, at 0.1 to 0.6.
"""


def bounds_of(bits: int) -> Bounds:
    """Return the least and the largest integer of a grid."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def narrow(layer: Layer, wiring: Wiring, weight: Floats, *, bits: int) -> Bounds:
    """Put a layer's weight on a grid of 4 or 2 bits with the least squared error, rounded to nearest.

    The scale is searched over clipped ranges (Nagel et al. 2021, arXiv:2106.08295, section 3.1, equation 10), one for
    as many weights as shared one before. The bounds are those of two's complement whatever the signs: a range that
    needs one step more above zero is clipped or stretched by the same search.

    Returns:
        The least and the largest integer that may be stored.
    """
    present = read_grid(layer, wiring)
    scale = best_scale(weight, present.scale, bits=bits)
    qmin, qmax = bounds_of(bits)
    grid = Grid(scale=scale, zero_point=np.zeros((), np.int32), qmin=qmin, qmax=qmax)
    write_integers(layer, wiring, grid.nearest(weight) + present.zero_point)
    tensor = wiring.initializers[layer.scale]
    stored: NDArray[np.float32] = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(scale.reshape(stored.shape).astype(stored.dtype), tensor.name))
    middle = int(present.zero_point.reshape(-1)[0])  # symmetric weights have one for all
    return qmin + middle, qmax + middle


def best_scale(weight: Floats, present: Floats, *, bits: int) -> Floats:
    """Return the scales with the least squared error, in the shape of the present ones; those of zeros stay."""
    qmin, qmax = bounds_of(bits)
    axes = tuple(at for at in range(weight.ndim) if present.ndim == 0 or present.shape[at] == 1)
    high, low = weight.max(axes, keepdims=True), weight.min(axes, keepdims=True)
    full = np.maximum(high / qmax, low / qmin).astype(np.float32)
    safe = np.where(full > 0, full, present.reshape(full.shape) if present.size == full.size else present)
    best, least = safe, np.full(safe.shape, np.inf, np.float32)
    for ratio in RATIOS[bits]:
        scale = (safe * ratio).astype(np.float32)
        rounded = np.clip(np.rint(weight / scale), qmin, qmax) * scale
        error = np.square(weight - rounded).sum(axes, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    chosen: Floats = best.reshape(present.shape)
    return chosen
