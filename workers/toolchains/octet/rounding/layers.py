"""The layers of a quantized graph whose weights can be rounded anew, and where their integers lie."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from workers.toolchains.octet.rounding.forms import Form, form_of
from workers.toolchains.octet.rounding.playback import constant
from workers.toolchains.octet.rounding.wiring import Wiring, attribute

Floats = NDArray[np.float32]

OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators with a weight that is multiplied, and so has a rounding worth learning."""

_MOVING = frozenset({"Transpose", "Identity"})
_NOT_MULTIPLYING = _MOVING | {"Gather"}
_LEAST_AXES = 2

# Of a step: nearest rounding leaves 0.29 of one (root mean square, 1/sqrt(12)), clipping some more.
_CLOSE = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer with a stored integer weight.

    Attributes:
        integers, scale, zero_point: names of the initializers; no zero_point means 0.
        dequantized: the tensor of the weight in float, as the layer takes it.
        moved: which stored axis each of the weight's axes is, where a Transpose lies in between.
    """

    node: onnx.NodeProto
    form: Form
    integers: str
    scale: str
    zero_point: str | None
    axis: int
    block_size: int
    dequantized: str
    moved: tuple[int, ...]

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def input(self) -> str:
        return str(self.node.input[0])

    @property
    def output(self) -> str:
        return str(self.node.output[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Which values a weight may take: `scale * (integer - zero_point)`, `qmin <= integer <= qmax`.

    Attributes:
        scale, zero_point: of the weight's shape, or of one that numpy stretches to it. A scale may be below 0, so
            that the longer side of an uneven range is the one that carries more; it is never 0.
    """

    scale: Floats
    zero_point: NDArray[np.int32]
    qmin: int
    qmax: int

    def nearest(self, weight: Floats) -> NDArray[np.int32]:
        """Return the integers nearest to a weight."""
        integers: NDArray[np.int32] = (np.rint(weight / self.scale) + self.zero_point).astype(np.int32)
        return integers.clip(self.qmin, self.qmax)

    def value(self, integers: NDArray[np.int32]) -> Floats:
        """Return what integers stand for."""
        return ((integers - self.zero_point) * self.scale).astype(np.float32)


def layers_of(wiring: Wiring) -> tuple[list[Layer], list[str]]:
    """Return the layers to learn, in the order they run in, and the names of those that cannot be learned.

    Lookup tables are not multiplied, and so are neither.
    """
    found, left = [], []
    for node in wiring.nodes:
        if node.op_type in _NOT_MULTIPLYING or not any(_stored(name, wiring) for name in node.input):
            continue
        layer = _layer(node, wiring) if node.op_type in OPERATORS else None
        if layer is not None and not _shared(layer, wiring):
            found.append(layer)
        else:
            left.append(str(node.name))
    return found, left


def read_integers(layer: Layer, wiring: Wiring) -> NDArray[np.int32]:
    """Return a layer's integers, with the axes of the weight it takes."""
    stored: NDArray[np.int32] = numpy_helper.to_array(wiring.initializers[layer.integers]).astype(np.int32)
    return stored.transpose(layer.moved)


def read_grid(layer: Layer, wiring: Wiring) -> Grid:
    """Return the grid of a layer's weight; its bounds are the least and the largest integer in use."""
    stored = numpy_helper.to_array(wiring.initializers[layer.integers]).astype(np.int32)
    scale = numpy_helper.to_array(wiring.initializers[layer.scale]).astype(np.float32)
    zero_point = np.zeros((), np.int32)
    if layer.zero_point is not None:
        zero_point = numpy_helper.to_array(wiring.initializers[layer.zero_point]).astype(np.int32)
    return Grid(
        scale=_stretched(np.where(scale == 0, 1, scale), layer, stored.shape),
        zero_point=_stretched(zero_point, layer, stored.shape),
        qmin=int(stored.min()),
        qmax=int(stored.max()),
    )


def write_integers(layer: Layer, wiring: Wiring, integers: NDArray[np.int32]) -> None:
    """Replace a layer's integers, in the type they are stored in."""
    tensor = wiring.initializers[layer.integers]
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    stored = np.ascontiguousarray(integers.transpose(np.argsort(layer.moved)).astype(kind))
    tensor.CopyFrom(numpy_helper.from_array(stored, tensor.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the weight before rounding is: in the float graph, but for factors that the toolchain put on its channels.

    Attributes:
        tensor: its name in the float graph.
        factor: [groups, 1, k], None for 1. SmoothQuant and AWQ multiply the input channels of a weight.
    """

    tensor: str
    factor: Floats | None

    def weight(self, layer: Layer, *, original: onnx.ModelProto, known: Wiring) -> Floats:
        """Return the weight before rounding."""
        weight = constant(original, known, self.tensor).astype(np.float32)
        if self.factor is None:
            return weight
        return np.ascontiguousarray(layer.form.weight(layer.form.matrix(weight) * self.factor))


def source_of(layer: Layer, wiring: Wiring, *, original: onnx.ModelProto, known: Wiring) -> Source | None:
    """Find a layer's weight before rounding; None if the float graph has no such layer, or another weight there."""
    place = known.places.get(layer.name)
    if place is None or len(known.nodes[place].input) <= 1:
        return None
    name = str(known.nodes[place].input[1])
    if name not in known.constants:
        return None
    weight = Source(tensor=name, factor=None).weight(layer, original=original, known=known)
    grid, integers = read_grid(layer, wiring), read_integers(layer, wiring)
    if weight.shape != integers.shape:
        return None
    rounded, step = grid.value(integers), _size(np.broadcast_to(grid.scale, weight.shape))
    if _size(weight - rounded) <= _CLOSE * step:
        return Source(tensor=name, factor=None)
    ours, theirs = layer.form.matrix(weight), layer.form.matrix(rounded)
    energy = np.square(ours).sum(axis=1, keepdims=True)
    factor = (ours * theirs).sum(axis=1, keepdims=True) / np.where(energy > 0, energy, 1)
    return Source(tensor=name, factor=factor) if _size(ours * factor - theirs) <= _CLOSE * step else None


def _stretched(parameter: NDArray[Any], layer: Layer, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a scale or zero point in a form that numpy stretches to the weight's shape."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = layer.axis % len(shape)
    if parameter.ndim == 1:
        return parameter.reshape([-1 if at == axis else 1 for at in range(len(shape))]).transpose(layer.moved)
    size = layer.block_size or -(-shape[axis] // parameter.shape[axis])
    return np.repeat(parameter, size, axis=axis).take(range(shape[axis]), axis=axis).transpose(layer.moved)


def _size(values: Floats) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def _stored(name: str, wiring: Wiring) -> tuple[onnx.NodeProto, tuple[int, ...]] | None:
    """Return the DequantizeLinear that a weight comes from, and which of its axes each axis of the weight is."""
    maker = wiring.maker(name)
    if maker is None:
        return None
    if maker.op_type == "DequantizeLinear":
        tensor = wiring.initializers.get(maker.input[0])
        fit = tensor is not None and len(tensor.dims) >= _LEAST_AXES
        return (maker, tuple(range(len(tensor.dims)))) if tensor is not None and fit else None
    if maker.op_type not in _MOVING or not (found := _stored(maker.input[0], wiring)):
        return None
    dequantize, axes = found
    given = attribute(maker, "perm", None)
    order = given if isinstance(given, list) else list(range(len(axes)))[::-1]
    return dequantize, tuple(axes[at] for at in order) if maker.op_type == "Transpose" else axes


def _layer(node: onnx.NodeProto, wiring: Wiring) -> Layer | None:
    found = _stored(node.input[1], wiring) if len(node.input) > 1 else None
    if found is None or _stored(node.input[0], wiring):
        return None
    dequantize, moved = found
    integers, scale, *rest = [str(name) for name in dequantize.input]
    dims = wiring.initializers[integers].dims
    form = form_of(node, [dims[at] for at in moved])
    zero_point = rest[0] if rest and rest[0] else None
    if form is None or not all(name in wiring.initializers for name in (scale, zero_point or scale)):
        return None
    return Layer(
        node=node,
        form=form,
        integers=integers,
        scale=scale,
        zero_point=zero_point,
        axis=_integer(dequantize, "axis", 1),
        block_size=_integer(dequantize, "block_size", 0),
        dequantized=str(node.input[1]),
        moved=moved,
    )


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    found = attribute(node, name, default)
    return found if isinstance(found, int) else default


def _shared(layer: Layer, wiring: Wiring) -> bool:
    """Whether another layer multiplies with the same weight, or rounds to the same scale."""
    dequantized = wiring.nodes[wiring.takers[layer.integers][0]].output[0]
    names = (layer.integers, layer.scale, dequantized, layer.dequantized)
    return any(len(wiring.takers[name]) > 1 for name in names)
