"""Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1): neighbours' weights get like ranges."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from workers.toolchains import graph as onnx_graph

# f(s * x) = s * f(x) for every s > 0, channel by channel.
_HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
)
_MOST_SWEEPS = 100
_CONVERGED = 1e-4
# A channel whose weights are this much smaller than the largest of its layer is dead: equalized, its bias would grow.
_DEAD = 1e-6
_BIAS = 2
Doubles = npt.NDArray[np.float64]


@dataclass(slots=True)
class _Layer:
    """A layer as equalization sees it: how large its weights are, and what its channels are to be scaled by.

    Attributes:
        sizes: float32[groups, outputs / groups, inputs / groups], the largest magnitude of each kernel.
        outputs, inputs: what the output channels were divided by so far, and the input channels multiplied with.
        axis: the weight's axis of output channels.
    """

    node: onnx.NodeProto
    sizes: npt.NDArray[np.float32]
    outputs: Doubles
    inputs: Doubles
    axis: int

    @property
    def groups(self) -> int:
        return len(self.sizes)

    def ranges(self, *, of_outputs: bool) -> Doubles:
        """Return the largest magnitude of each output or each input channel, scaled as they are by now."""
        inputs = self.inputs.reshape(self.groups, 1, -1)
        outputs = self.outputs.reshape(self.groups, -1, 1)
        found: Doubles = (self.sizes * inputs / outputs).max(axis=2 if of_outputs else 1).reshape(-1)
        return found

    def scaled(self, weight: Doubles) -> Doubles:
        """Return the weight with all scales applied."""
        first = np.moveaxis(weight, self.axis, 0)
        parted = first.reshape(self.groups, len(first) // self.groups, *first.shape[1:])
        rest = [1] * (first.ndim - 2)
        parted = (
            parted / self.outputs.reshape(self.groups, -1, 1, *rest) * self.inputs.reshape(self.groups, 1, -1, *rest)
        )
        return np.moveaxis(parted.reshape(first.shape), 0, self.axis)


def equalize(graph: onnx.GraphProto) -> int:
    """Equalize all pairs of neighbouring layers in turn, until nothing changes any more; return how many there are.

    A pair is a Conv or Gemm whose answer reaches another Conv or Gemm, and nobody else, through nothing or positively
    homogeneous functions. With r1 and r2 the largest magnitudes of a channel's weights in the one and the other,
    `s = sqrt(r1 * r2) / r2` (equation 11) divides the first's outputs and multiplies the second's inputs. Pairs with
    weights that are shared, not constant or not float32 are left alone.
    """
    layers: dict[str, _Layer] = {}
    pairs = [(_kept(layers, first), _kept(layers, second)) for first, second in _pairs(graph)]
    for _ in range(_MOST_SWEEPS):
        moved = max((_equalize_pair(first, second) for first, second in pairs), default=0.0)
        if moved < _CONVERGED:
            break
    known = onnx_graph.constants(graph)
    for layer in layers.values():
        weight = known[layer.node.input[1]]
        onnx_graph.replace_constant(weight, layer.scaled(_doubles(weight)).astype(np.float32))
        if len(layer.node.input) > _BIAS and layer.node.input[_BIAS]:
            bias = known[layer.node.input[_BIAS]]
            onnx_graph.replace_constant(bias, (_doubles(bias) / layer.outputs).astype(np.float32))
    return len(pairs)


def _kept(layers: dict[str, _Layer], layer: _Layer) -> _Layer:
    return layers.setdefault(layer.node.name, layer)


def _equalize_pair(first: _Layer, second: _Layer) -> float:
    """Return how far the largest scale is from 1, as a ratio."""
    r1, r2 = first.ranges(of_outputs=True), second.ranges(of_outputs=False)
    alive = (r1 > _DEAD * r1.max()) & (r2 > _DEAD * r2.max())
    scale = np.ones_like(r1)
    scale[alive] = np.sqrt(r1[alive] * r2[alive]) / r2[alive]
    first.outputs *= scale
    second.inputs *= scale
    return float(np.exp(np.abs(np.log(scale)).max()) - 1)


def _pairs(graph: onnx.GraphProto) -> Iterator[tuple[_Layer, _Layer]]:
    known, readers = onnx_graph.constants(graph), onnx_graph.readers(graph)
    outputs = onnx_graph.output_names(graph)
    shared = {name for name, nodes in readers.items() if len(nodes) > 1} | outputs
    for node in graph.node:
        first = _layer(node, known, shared)
        after = _next_layer(node, readers, outputs) if first is not None else None
        second = _layer(after, known, shared) if after is not None else None
        if first is not None and second is not None and len(first.outputs) == len(second.inputs):
            yield first, second


def _next_layer(
    node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], outputs: set[str]
) -> onnx.NodeProto | None:
    """Return the one layer that this one's answer reaches."""
    current = node
    while True:
        name = current.output[0]
        following = readers.get(name, [])
        if len(following) != 1 or name in outputs or following[0].input[0] != name or len(current.output) > 1:
            return None
        current = following[0]
        if current.op_type not in _HOMOGENEOUS:
            return current


def _layer(node: onnx.NodeProto, known: Mapping[str, TensorProto], shared: set[str]) -> _Layer | None:
    if node.op_type not in ("Conv", "Gemm") or onnx_graph.attribute_int(node, "transA", default=0):
        return None
    weight = _own(node.input[1], known, shared)
    if weight is None or not all(weight.dims):
        return None
    axis, groups = onnx_graph.channel_axis(node), onnx_graph.attribute_int(node, "group", default=1)
    sizes = _sizes(weight, axis=axis, groups=groups)
    outputs = sizes.shape[0] * sizes.shape[1]
    if not np.isfinite(sizes).all() or not _is_plain(node, known, shared, channels=outputs):
        return None
    inputs = sizes.shape[0] * sizes.shape[2]
    return _Layer(node=node, sizes=sizes, outputs=np.ones(outputs), inputs=np.ones(inputs), axis=axis)


def _sizes(weight: TensorProto, *, axis: int, groups: int) -> npt.NDArray[np.float32]:
    first = np.moveaxis(np.abs(numpy_helper.to_array(weight)), axis, 0)
    outputs, inputs = first.shape[:2]
    sizes: npt.NDArray[np.float32] = first.reshape(groups, outputs // groups, inputs, -1).max(axis=3)
    return sizes


def _is_plain(node: onnx.NodeProto, known: Mapping[str, TensorProto], shared: set[str], *, channels: int) -> bool:
    """Whether the layer has no bias, or one of its own with a number for each channel."""
    if len(node.input) <= _BIAS or not node.input[_BIAS]:
        return True
    bias = _own(node.input[_BIAS], known, shared)
    return bias is not None and list(bias.dims) == [channels]


def _own(name: str, known: Mapping[str, TensorProto], shared: set[str]) -> TensorProto | None:
    tensor = known.get(name)
    return tensor if tensor is not None and name not in shared and tensor.data_type == TensorProto.FLOAT else None


def _doubles(tensor: TensorProto) -> Doubles:
    return np.asarray(numpy_helper.to_array(tensor), np.float64)
