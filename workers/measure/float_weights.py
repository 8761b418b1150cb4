"""What a variant's weights would be in float: those of float32, brought to where the variant's graph has them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from workers.measure.constants import constants
from workers.measure.layers import Wiring, pairs
from workers.measure.scales import Fit, fit, is_same, reads_rows, scaled

_WEIGHT, _BIAS = 1, 2
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear"})
_DEFAULT_EPSILON = 1e-5

Array = NDArray[Any]
Place = tuple[str, int]
"""A node's name, and the number of its input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatWeights:
    """
    Attributes:
        values: by place in the variant's graph; what is not here stays as the variant has it.
        names: of the variant's nodes, by the names of the same nodes in float32.
    """

    values: dict[Place, Array]
    names: dict[str, str]


def float_weights(float32: onnx.ModelProto, variant: onnx.ModelProto) -> FloatWeights:
    """Find the float value of every float constant of the variant's nodes.

    What was done to the graph before it was quantized is done to the values too: a batch normalization that the
    variant no longer has is folded in (Jacob et al. 2018, arXiv:1712.05877, section 3.2); channels that were scaled,
    for equalization or smoothing, get the scales that fit the variant's weights best.
    """
    both = _Both(float32, variant)
    layers: dict[Place, Array] = {}
    others: dict[Place, Array] = {}
    fits: dict[str, Fit] = {}
    same = list(_same_nodes(both))
    for node, other in same:
        if other.op_type in _WEIGHTED and other.input[_WEIGHT] in both.after:
            layers |= _of_layer(node, other, both, fits)
        elif other.op_type == "Add" and (before := _layer_before(other, both.variant)) in fits:
            layers |= _added(_at_same_places(node, other, both), both.after, other, fits[before])
        else:
            found = _at_same_places(node, other, both)
            layers |= {place: value for place, value in found.items() if _is_rounded(place, value, other, both)}
            others |= found
    # where a layer was scaled, the other half of the scale may sit in any constant: what was not just rounded stays
    was_scaled = any(each.scaled for each in fits.values())
    names = {node.name: other.name for node, other in same}
    return FloatWeights(values=layers if was_scaled else others | layers, names=names)


class _Both:
    """The two graphs, the values of the constants that they compute with, and who reads what in float32."""

    def __init__(self, float32: onnx.ModelProto, variant: onnx.ModelProto) -> None:
        self.float32, self.variant = Wiring.of(float32.graph), Wiring.of(variant.graph)
        self.before = constants(float32, self.float32, _read_constants(self.float32))
        self.after = constants(variant, self.variant, _read_constants(self.variant))
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.float32.nodes.values():
            for name in node.input:
                self.readers.setdefault(name, []).append(node)


def _read_constants(wiring: Wiring) -> Iterator[str]:
    """Yield the constants that nodes compute with: not those that only become other constants."""
    for node in wiring.nodes.values():
        if node.op_type not in _QUANTIZERS and node.output[0] not in wiring.constants:
            yield from (name for name in node.input if name in wiring.constants)


def _same_nodes(both: _Both) -> Iterator[tuple[NodeProto, NodeProto]]:
    partner = pairs(both.float32, both.variant)
    for node in both.float32.nodes.values():
        other = partner.get(node.name) or both.variant.nodes.get(node.name)
        if other is not None and (node.name in partner or other.op_type == node.op_type):
            yield node, other


def _at_same_places(node: NodeProto, other: NodeProto, both: _Both) -> dict[Place, Array]:
    """Take the constants at the same inputs, if they are floats of the same shape."""
    found: dict[Place, Array] = {}
    for index, (mine, theirs) in enumerate(zip(node.input, other.input, strict=False)):
        value, known = both.before.get(mine), both.after.get(theirs)
        if value is not None and known is not None and known.dtype.kind == "f" and value.shape == known.shape:
            found[other.name, index] = value.astype(known.dtype)
    return found


def _is_rounded(place: Place, value: Array, other: NodeProto, both: _Both) -> bool:
    """Whether the variant has the same constant, quantized: a lookup table, say."""
    name = other.input[place[1]]
    return name in both.variant.quantized and is_same(value, both.after[name])


def _layer_before(node: NodeProto, wiring: Wiring) -> str:
    """Return the node whose outputs an Add adds to, looking through quantizers; empty if it adds two of them."""
    names = [name for name in node.input if name not in wiring.constants]
    maker = wiring.makers.get(names[0]) if len(names) == 1 else None
    while maker is not None and maker.op_type in _QUANTIZERS:
        maker = wiring.makers.get(maker.input[0])
    return "" if maker is None else maker.name


def _added(found: dict[Place, Array], after: dict[str, Array], other: NodeProto, how: Fit) -> dict[Place, Array]:
    return {
        (name, index): how.bias(value, after[other.input[index]]).astype(value.dtype)
        for (name, index), value in found.items()
    }


def _of_layer(node: NodeProto, other: NodeProto, both: _Both, fits: dict[str, Fit]) -> dict[Place, Array]:
    """Return a layer's float weight and bias by their places, and note how its channels had been scaled."""
    quantized = both.after[other.input[_WEIGHT]]
    weight, bias = _float_of(node, both)
    if weight is not None and reads_rows(node) != reads_rows(other):
        weight = weight.T
    if weight is None or weight.shape != quantized.shape or quantized.dtype.kind != "f":
        return {}
    how = fit(weight, quantized, other)
    if how is None:
        return {}
    fits[other.name] = how
    found = {(other.name, _WEIGHT): (scaled(weight, how, other) if how.scaled else weight).astype(quantized.dtype)}
    known = both.after.get(other.input[_BIAS]) if len(other.input) > _BIAS else None
    if bias is not None and known is not None and bias.size == known.size:
        found[other.name, _BIAS] = how.bias(bias.reshape(known.shape), known).astype(known.dtype)
    return found


def _float_of(node: NodeProto, both: _Both) -> tuple[Array | None, Array | None]:
    """Return weight and bias in float32, with the batch normalization folded in that the variant lacks."""
    weight = both.before.get(node.input[_WEIGHT])
    bias = both.before.get(node.input[_BIAS]) if len(node.input) > _BIAS else None
    readers = both.readers.get(node.output[0], [])
    follows = readers[0] if len(readers) == 1 and readers[0].op_type == "BatchNormalization" else None
    if weight is None or follows is None or follows.name in both.variant.nodes:
        return weight, bias
    if any(name not in both.before for name in follows.input[1:]):
        return weight, bias
    gamma, beta, mean, variance = (both.before[name].astype(np.float64) for name in follows.input[1:])
    epsilon = next((each.f for each in follows.attribute if each.name == "epsilon"), _DEFAULT_EPSILON)
    gain = gamma / np.sqrt(variance + epsilon)
    axis = 0 if node.op_type == "Conv" or reads_rows(node) else 1
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    return weight * gain.reshape(shape), ((0.0 if bias is None else bias) - mean) * gain + beta
