"""Layers of an ONNX graph: which nodes compute, what feeds them, and which node of another graph is the same one."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto

from workers import graphs

COMPUTE = frozenset(
    {
        "Attention",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DeformConv",
        "Einsum",
        "GRU",
        "Gemm",
        "LSTM",
        "MatMul",
        "MatMulInteger",
        "RNN",
    }
)
"""Operators that multiply and add."""

WEIGHT_INPUTS: Mapping[str, tuple[int, ...]] = {"LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}
"""Where an operator takes its weights, if not at 1 as all the others."""

MOVES = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that pick and move values but make no new ones: what was quantized before them still is behind them."""

_FOLDED = MOVES | {"Cast", "Constant", "DequantizeLinear", "QuantizeLinear"}
_EVERY_INPUT = ("Concat",)


def load(path: Path) -> onnx.ModelProto:
    """Load a graph that Octet made, at the opset and with the node names that toolchains see, as far as it can be."""
    graph = onnx.load(path, load_external_data=False)
    with suppress(*graphs.CONVERT_ERRORS):
        graph = graphs.modernised(graph)
    graphs.name_nodes(graph.graph)
    return graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Who makes which tensor. Nodes inside other nodes' graphs are left out.

    Attributes:
        nodes: by name, in the order they run.
        makers: by output tensor.
        position: of every node, by name.
        constants: tensors that depend on no input: weights, and what is only moved or (de)quantized on their way.
        quantized: tensors that are dequantized values, possibly moved since.
    """

    nodes: dict[str, NodeProto]
    makers: dict[str, NodeProto]
    position: dict[str, int]
    constants: frozenset[str]
    quantized: frozenset[str]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> "Wiring":
        """Read a graph whose nodes all have names, in one walk."""
        constants = {tensor.name for tensor in graph.initializer}
        constants |= {sparse.values.name for sparse in graph.sparse_initializer}
        constants -= {value.name for value in graph.input}
        quantized: set[str] = set()
        for node in graph.node:
            if node.op_type in _FOLDED and all(name in constants for name in node.input if name):
                constants.update(node.output)
            if node.op_type == "DequantizeLinear" or (
                node.op_type in MOVES and all(name in quantized for name in moved(node))
            ):
                quantized.update(node.output)
        return cls(
            nodes={node.name: node for node in graph.node},
            makers={name: node for node in graph.node for name in node.output if name},
            position={node.name: number for number, node in enumerate(graph.node)},
            constants=frozenset(constants),
            quantized=frozenset(quantized),
        )

    def compute(self) -> Iterator[NodeProto]:
        """Yield the nodes that multiply and add something other than constants."""
        for node in self.nodes.values():
            if node.op_type in COMPUTE and not all(name in self.constants for name in node.input if name):
                yield node

    def quantizes(self, node: NodeProto) -> bool:
        """Whether data and weights of a compute node, or both factors of a product, are dequantized values."""
        wanted = (0, *WEIGHT_INPUTS.get(node.op_type, (1,)))
        names = [node.input[index] for index in wanted if index < len(node.input)]
        return len(names) > 1 and all(name in self.quantized for name in names)

    def nearest_compute(self, tensor: str) -> NodeProto | None:
        """Return the compute node that a tensor comes from, walking up first inputs; None before there is one."""
        maker = self.makers.get(tensor)
        while maker is not None and maker.op_type not in COMPUTE:
            upward = [name for name in maker.input if name and name not in self.constants]
            maker = self.makers.get(upward[0]) if upward else None
        return maker


def moved(node: NodeProto) -> list[str]:
    """Return the inputs whose values a node of `MOVES` moves: not its indices or shapes."""
    return list(node.input) if node.op_type in _EVERY_INPUT else list(node.input[:1])


def pairs(one: Wiring, other: Wiring) -> dict[str, NodeProto]:
    """Find each compute node of `one` in `other`: by its name; by the tensor it makes; by its place among its like.

    Toolchains keep names, or at least those of tensors. One that traces the model anew keeps the order alone, which is
    trusted where both graphs compute the same in the same order and no name speaks against it.
    """
    found = {node.name: match for node in one.compute() if (match := _same(node, one, other)) is not None}
    mine, theirs = list(one.compute()), list(other.compute())
    if len(found) == len(mine) or [_family(node) for node in mine] != [_family(node) for node in theirs]:
        return found
    in_order = {node.name: match for node, match in zip(mine, theirs, strict=True)}
    agrees = all(in_order[name].name == match.name for name, match in found.items())
    return in_order if agrees else found


def _same(node: NodeProto, one: Wiring, other: Wiring) -> NodeProto | None:
    named = other.nodes.get(node.name)
    if named is not None and named.op_type in COMPUTE:
        return named
    found = other.nearest_compute(node.output[0])
    # a node that both graphs name is itself, and not another one
    return None if found is None or found.name in one.nodes else found


def _family(node: NodeProto) -> str:
    """Say what a node computes, however it is written: a Gemm is a product with a bias."""
    return "MatMul" if node.op_type in ("Gemm", "MatMul", "MatMulInteger") else node.op_type.removesuffix("Integer")
