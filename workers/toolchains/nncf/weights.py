"""Which tensors of a graph are weights that can be stored in few bits, and along which axes they share scales."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from workers import graphs

MATRIX_PRODUCTS = ("MatMul", "Gemm")
CONVOLUTIONS = ("Conv", "ConvTranspose")
RECURRENT = ("LSTM", "GRU", "RNN")
LOOKUPS = ("Gather",)
_OPERANDS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(MATRIX_PRODUCTS, (0, 1)),
    **dict.fromkeys(CONVOLUTIONS, (1,)),
    **dict.fromkeys(RECURRENT, (1, 2)),
    **dict.fromkeys(LOOKUPS, (0,)),
}
KINDS = tuple(_OPERANDS)
"""Operators whose weights can be stored in few bits."""

_LEAST_RANK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One float32 tensor that layers multiply with, or look rows up in.

    Attributes:
        graph: where it is stored: the model's graph, or one inside a node.
        kind: operator of the first layer that takes it.
        layers: names of all nodes that take it, those that only move its axes left out.
        output_axis: of the stored tensor; one scale per index along it.
        input_axis: of the stored tensor, which groups divide; None where there are none: lookups, convolutions and
            recurrent layers have one scale per row, output channel, or row of a gate.
        direct: whether the first layer takes the tensor itself, not a transposed one.
    """

    graph: onnx.GraphProto
    tensor: TensorProto
    kind: str
    layers: tuple[str, ...]
    output_axis: int
    input_axis: int | None
    direct: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """One layer that takes a tensor: `axes` says which axis of the stored tensor each axis of the operand is."""

    node: onnx.NodeProto
    operand: int
    axes: tuple[int, ...]


def weights_of(proto: onnx.ModelProto) -> Iterator[Weight]:
    """Walk the weights of all graphs, inner ones too: float32, at least two axes, none of length zero."""
    for graph in graphs.graphs_of(proto.graph):
        outputs = {value.name for value in graph.output}
        uses = _uses(graph)
        for tensor in graph.initializer:
            fit = tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= _LEAST_RANK and 0 not in tensor.dims
            if fit and tensor.name not in outputs and (found := uses.get(tensor.name)):
                yield _weight(graph, tensor, found)


def _weight(graph: onnx.GraphProto, tensor: TensorProto, uses: list[_Use]) -> Weight:
    first = uses[0]
    output_axis, input_axis = _axes(first)
    return Weight(
        graph=graph,
        tensor=tensor,
        kind=first.node.op_type,
        layers=tuple(dict.fromkeys(use.node.name for use in uses)),
        output_axis=first.axes[output_axis],
        input_axis=None if input_axis is None else first.axes[input_axis],
        direct=first.axes == tuple(range(len(tensor.dims))),
    )


def _axes(use: _Use) -> tuple[int, int | None]:
    """Return an operand's output axis and, for matrix products, the one it is summed along."""
    node = use.node
    if node.op_type == "MatMul":
        return (-1, -2) if use.operand else (-2, -1)
    if node.op_type == "Gemm":
        transposed = _attribute(node, "transB" if use.operand else "transA")
        return (0, 1) if bool(transposed) == bool(use.operand) else (1, 0)
    return (1 if node.op_type in (*RECURRENT, "ConvTranspose") else 0), None


def _uses(graph: onnx.GraphProto) -> dict[str, list[_Use]]:
    """Return, for each initializer of the graph, the layers that take it, moved axes or not."""
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    moved = {name: (name, tuple(range(rank))) for name, rank in ranks.items()}
    uses: dict[str, list[_Use]] = {}
    for node in graphs.nodes_of(graph):
        if node.op_type in ("Identity", "Transpose") and node.input[0] in moved:
            name, axes = moved[node.input[0]]
            moved[node.output[0]] = name, tuple(axes[axis] for axis in _permutation(node, len(axes)))
        for operand in _OPERANDS.get(node.op_type, ()) if node.domain in graphs.STANDARD_DOMAINS else ():
            if operand < len(node.input) and node.input[operand] in moved and _counts(node):
                name, axes = moved[node.input[operand]]
                uses.setdefault(name, []).append(_Use(node=node, operand=operand, axes=axes))
    return uses


def _counts(node: onnx.NodeProto) -> bool:
    """Whether a lookup takes whole rows; every other layer counts."""
    return node.op_type not in LOOKUPS or _attribute(node, "axis") == 0


def _permutation(node: onnx.NodeProto, rank: int) -> tuple[int, ...]:
    if node.op_type == "Identity":
        return tuple(range(rank))
    given = [tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
    return given[0] if given else tuple(reversed(range(rank)))


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
