"""By what a weight's channels were scaled before it was quantized: found from the two weights alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

# Rounding to 4 bits moves weights by 10 to 15 % of their root mean square; other weights differ by 140 %.
_SAME = 0.3
# By how much the simpler explanation may be worse: cut-off values look a little like a smaller scale.
_AS_GOOD = 1.5
# What float32 itself rounds, with room for a few operations.
_NOTHING = 1e-6
_SWEEPS = 5
_MATRIX = 2
_OF_OUTPUT, _OF_INPUT = (2, 3), (1, 3)
"""The axes of a weight's blocks that one output, or one input, runs over."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """`outputs * inputs * weight` is nearest to what was quantized.

    Attributes:
        outputs: float64(groups, outputs of a group, 1, 1).
        inputs: float64(groups, 1, inputs of a group, 1).
        free: whether one number may be moved from the one to the other.
    """

    outputs: Array
    inputs: Array
    free: bool = False

    @property
    def scaled(self) -> bool:
        """Whether anything was scaled at all."""
        return bool((self.outputs != 1).any() or (self.inputs != 1).any())

    def bias(self, bias: Array, quantized: Array) -> Array:
        """Scale a bias as the outputs were; the variant's own settles the number that the weights leave open."""
        outputs = self.outputs.reshape(-1)
        if bias.size != outputs.size:
            return bias
        made: Array = bias * outputs.reshape(bias.shape)
        energy = float((made * made).sum())
        return made * (float((made * quantized).sum()) / energy) if self.free and energy > 0 else made


def fit(weight: Array, quantized: Array, node: NodeProto) -> Fit | None:
    """Find the simplest scales that explain the difference between a weight and what was made of it.

    None at all, then one per input channel (SmoothQuant, Xiao et al. 2022, equation 3), one per output channel
    (folding), both (equalization, Nagel et al. 2019, equation 7). The last is a least-squares fit in turns.

    Returns:
        None if even that leaves more than rounding can be: it is another weight.
    """
    one, two = blocks(weight, node), blocks(quantized, node)
    size = _rms(two)
    plain = Fit(outputs=np.ones((len(one), one.shape[1], 1, 1)), inputs=np.ones((len(one), 1, one.shape[2], 1)))
    if _rms(one - two) <= _NOTHING * size:
        return plain
    simpler = (
        plain,
        Fit(outputs=plain.outputs, inputs=_ratio(one, two, axes=_OF_INPUT)),
        Fit(outputs=_ratio(one, two, axes=_OF_OUTPUT), inputs=plain.inputs),
    )
    both = _both(one, two, start=plain)
    least = _rest(one, two, both)
    if least > _SAME * size or (one.size <= both.outputs.size + both.inputs.size and _rms(one - two) > _SAME * size):
        return None
    # of n errors, n - p are left when p numbers are fitted to them, even where there is nothing to be found
    left = max(0.0, 1 - (both.outputs.size + both.inputs.size) / max(one.size, 1)) ** 0.5
    enough = max(_AS_GOOD * least, _NOTHING * size)
    return next((each for each in simpler if _rest(one, two, each) * left <= enough), both)


def is_same(weight: Array, quantized: Array) -> bool:
    """Whether rounding alone may have made the one of the other."""
    return _rms(weight - quantized) <= _SAME * _rms(quantized)


def scaled(weight: Array, found: Fit, node: NodeProto) -> Array:
    """Return the weight with its scales, in its own layout."""
    made = blocks(weight, node) * found.outputs * found.inputs
    if node.op_type in ("Gemm", "MatMul") and weight.ndim == _MATRIX:
        matrix = made[0, :, :, 0]
        return matrix if reads_rows(node) else matrix.T
    by_output = made.swapaxes(1, 2) if node.op_type == "ConvTranspose" else made
    return by_output.reshape(weight.shape)


def blocks(weight: Array, node: NodeProto) -> Array:
    """Lay a weight out as float64(groups, outputs of a group, inputs of a group, rest)."""
    values = weight.astype(np.float64)
    if node.op_type in ("Gemm", "MatMul"):
        if values.ndim != _MATRIX:
            return values.reshape(1, 1, 1, -1)
        return (values if reads_rows(node) else values.T)[np.newaxis, :, :, np.newaxis]
    groups = next((each.i for each in node.attribute if each.name == "group"), 1)
    split = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
    return split.swapaxes(1, 2) if node.op_type == "ConvTranspose" else split


def reads_rows(node: NodeProto) -> bool:
    """Whether a product takes its matrix transposed, one row per output."""
    return any(attribute.name == "transB" and attribute.i == 1 for attribute in node.attribute)


def _both(one: Array, two: Array, *, start: Fit) -> Fit:
    inputs = outputs = np.ones(())
    for _ in range(_SWEEPS):
        inputs = _ratio(one * outputs, two, axes=_OF_INPUT)
        outputs = _ratio(one * inputs, two, axes=_OF_OUTPUT)
    return Fit(outputs=start.outputs * outputs, inputs=start.inputs * inputs, free=True)


def _ratio(one: Array, wanted: Array, *, axes: tuple[int, int]) -> Array:
    energy = (one * one).sum(axis=axes, keepdims=True)
    dot = (one * wanted).sum(axis=axes, keepdims=True)
    found: Array = np.where(energy > 0, dot / np.where(energy > 0, energy, 1), 1.0)
    return found


def _rest(one: Array, two: Array, found: Fit) -> float:
    return _rms(one * found.outputs * found.inputs - two)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean())) if values.size else 0.0
