"""Whether a graph has attention in it, which NNCF treats by rules of its own."""

from collections.abc import Callable, Iterable

import onnx

from workers.toolchains.graph import constants, readers, writers

_BETWEEN = frozenset(
    {"Add", "Cast", "Clip", "Div", "Dropout", "Identity", "Mul", "Reshape", "Squeeze", "Sub", "Transpose"}
    | {"Unsqueeze", "Where", "Expand", "IsNaN"}
)
_FUSED = frozenset({"Attention", "MultiHeadAttention"})


def has_attention(proto: onnx.ModelProto) -> bool:
    """Whether a Softmax lies between two matrix products without weights (Vaswani et al. 2017, equation 1)."""
    graph = proto.graph
    made_by, taken_by = writers(graph), readers(graph)
    weights = set(constants(graph))

    def before(node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
        return (made_by[name] for name in node.input if name in made_by)

    def after(node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
        return (reader for name in node.output for reader in taken_by.get(name, ()))

    def product(node: onnx.NodeProto) -> bool:
        return node.op_type == "MatMul" and not set(node.input) & weights

    return any(
        node.op_type in _FUSED
        or (node.op_type == "Softmax" and _reaches(node, before, product) and _reaches(node, after, product))
        for node in graph.node
    )


def _reaches(
    start: onnx.NodeProto,
    step: Callable[[onnx.NodeProto], Iterable[onnx.NodeProto]],
    wanted: Callable[[onnx.NodeProto], bool],
) -> bool:
    waiting, seen = list(step(start)), set[int]()
    while waiting:
        node = waiting.pop()
        if wanted(node):
            return True
        if id(node) not in seen and node.op_type in _BETWEEN:
            seen.add(id(node))
            waiting.extend(step(node))
    return False
