"""Which nodes ONNX Runtime's quantizer is given: those that OpenVINO then runs in int8, and no other.

Quantizers stand before weighted layers, before pools and before the additions that join two branches of a
convolutional graph; never behind a layer. So it was measured on residual, depthwise, squeeze-and-excitation and
concatenating graphs: all convolutions ran in u8, and quantizers elsewhere cost time, accuracy or both.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from workers import graphs
from workers.toolchains import graph as onnx_graph

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
WEIGHTED = CONVOLUTIONS | {"Gemm", "MatMul"}
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
# What an image passes through and still is one, from convolution to pool.
_PASSING = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Gelu", "Tanh", "Erf"),
        *("Add", "Mul", "Sub", "Div", "Concat", "Split", "Pad", "Slice", "Resize", "DepthToSpace"),
        *("BatchNormalization", "InstanceNormalization", "MaxPool", "AveragePool", "GlobalMaxPool"),
    }
)
_MATRIX_AXES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where quantizers go.

    Attributes:
        nodes: names of the nodes whose inputs are quantized.
        activations: the tensors among those inputs that calibration has to observe, in the graph's order.
    """

    nodes: tuple[str, ...]
    activations: tuple[str, ...]


def place(graph: onnx.ModelProto, *, kinds: Mapping[str, onnx.TypeProto], float_layers: Iterable[str]) -> Placement:
    """Choose the nodes to quantize, without those named."""
    weights = onnx_graph.constants(graph.graph)
    fixed = {tensor.name for tensor in graph.graph.initializer}
    kept = set(float_layers)
    walk = _Walk(kinds=kinds, weights=weights, fixed=fixed)
    nodes = [node for node in graph.graph.node if walk.takes(node) and node.name not in kept]
    found = dict.fromkeys(name for node in nodes for name in _activations(node, fixed=fixed))
    return Placement(nodes=tuple(node.name for node in nodes), activations=tuple(found))


def remarks(graph: onnx.ModelProto) -> tuple[str, ...]:
    """Say which layers with weights stay in float although nobody asked for it."""
    recurrent = Counter(node.op_type for node in graphs.nodes_of(graph.graph) if node.op_type in _RECURRENT)
    found = [
        f"{kind} layers stayed in float, {count} of them: standard ONNX has no 8-bit form of {kind}."
        for kind, count in sorted(recurrent.items())
    ]
    outer = {node.name for node in graph.graph.node}
    inside = [node for node in graphs.nodes_of(graph.graph) if node.op_type in WEIGHTED and node.name not in outer]
    if inside:
        found.append(f"Layers inside of If, Loop or Scan nodes stayed in float, {len(inside)} of them.")
    return tuple(found)


class _Walk:
    """Looks at the nodes in the graph's order."""

    def __init__(
        self, *, kinds: Mapping[str, onnx.TypeProto], weights: Mapping[str, TensorProto], fixed: set[str]
    ) -> None:
        self._kinds = kinds
        self._weights = weights
        self._fixed = fixed
        self._images: set[str] = set()
        self._convolved: set[str] = set()

    def takes(self, node: onnx.NodeProto) -> bool:
        if node.op_type in CONVOLUTIONS:
            self._images.update(node.output)
            self._convolved.update(node.output)
        elif node.op_type in _PASSING and any(name in self._images for name in node.input):
            self._images.update(node.output)
        if node.op_type == "BatchNormalization" and node.input[0] in self._convolved:
            self._convolved.update(node.output)
        return self._is_quantizable(node)

    def _is_quantizable(self, node: onnx.NodeProto) -> bool:
        inputs = [name for name in node.input if name]
        if not inputs or not onnx_graph.is_float32(self._kinds.get(inputs[0])) or inputs[0] in self._fixed:
            return False
        if node.op_type in CONVOLUTIONS or node.op_type == "Gemm":
            return inputs[1] in self._weights and self._is_float(inputs[1])
        if node.op_type == "MatMul":
            return self._is_matrix(inputs[1])
        if node.op_type == "Add":
            return self._joins(inputs)
        return node.op_type in _POOLS and inputs[0] in self._images

    def _is_matrix(self, name: str) -> bool:
        if name in self._fixed and name not in self._weights:
            return False
        axes = len(self._kinds[name].tensor_type.shape.dim) if name in self._kinds else 0
        return self._is_float(name) and axes >= _MATRIX_AXES

    def _joins(self, inputs: list[str]) -> bool:
        """Whether the addition joins two branches, one of which ends in a convolution."""
        branches = [name for name in inputs if self._is_float(name) and name not in self._fixed]
        return len(branches) == len(inputs) and any(name in self._convolved for name in branches)

    def _is_float(self, name: str) -> bool:
        return onnx_graph.is_float32(self._kinds.get(name))


def _activations(node: onnx.NodeProto, *, fixed: set[str]) -> list[str]:
    both = node.op_type in ("MatMul", "Add")
    return [name for name in (node.input if both else node.input[:1]) if name and name not in fixed]
