"""Computes what is constant in a graph, once: an engine would do it at load, a quantizer does not see through it."""

import onnx
from onnx import TensorProto, helper, numpy_helper

from workers import graphs
from workers.toolchains import graph as onnx_graph
from workers.toolchains.branches import inline_constant_branches
from workers.toolchains.evaluate import evaluate

# A constant may grow to this many bytes, or to twice what it is made of: a file is not to grow by a Tile or Expand.
MOST_GROWN_BYTES = 65_536
_GROWTH = 2
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)
# They hold weights in 8 bits already; computed, they would be four times as large.
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_PLAIN_VALUES = {"value", "value_float", "value_floats", "value_int", "value_ints"}


def fold(graph: onnx.ModelProto, *, keep: frozenset[str]) -> None:
    """Turn constant nodes into initializers, take the branch of each `If` that is constant, drop nodes that do nothing.

    Nodes named in `keep` stay. The results are those ONNX Runtime computes for each node. Where something cannot be
    computed, or would make the file grow, it stays as it is.
    """
    changed = True
    while changed:
        changed = _fold_once(graph, keep=keep)
        changed |= inline_constant_branches(graph.graph, keep=keep)
    _drop_idle(graph.graph, keep=keep)
    graphs.drop_unused_weights(graph.graph)


def _fold_once(graph: onnx.ModelProto, *, keep: frozenset[str]) -> bool:
    """Compute what follows from the initializers alone; return whether there was anything."""
    known = onnx_graph.constants(graph.graph)
    kinds = onnx_graph.typed(graph)
    remaining = []
    for node in graph.graph.node:
        made = None if node.name in keep else _computed(node, known, kinds, opset=graphs.opset(graph))
        if made is None:
            remaining.append(node)
            continue
        known.update({tensor.name: tensor for tensor in made})
        graph.graph.initializer.extend(made)
    if len(remaining) == len(graph.graph.node):
        return False
    onnx_graph.keep_nodes(graph.graph, remaining)
    return True


def _computed(
    node: onnx.NodeProto, known: dict[str, TensorProto], kinds: dict[str, onnx.TypeProto], *, opset: int
) -> list[TensorProto] | None:
    """Return what a node gives, one tensor per output; None if that is not constant, or not to be stored."""
    if node.op_type == "Constant":
        return _constant(node)
    if node.op_type == "Shape":
        return _shape(node, kinds)
    if node.op_type in _RANDOM | _QUANTIZED or _has_graphs(node):
        return None
    if not node.input or any(name not in known for name in node.input if name):
        return None
    room = max(MOST_GROWN_BYTES, _GROWTH * sum(known[name].ByteSize() for name in node.input if name))
    sizes = [_size_bytes(kinds.get(name)) for name in node.output if name]
    if any(size is None for size in sizes) or sum(size or 0 for size in sizes) > room:
        return None
    return evaluate(node, known, kinds, opset=opset)


def _constant(node: onnx.NodeProto) -> list[TensorProto] | None:
    value = node.attribute[0] if node.attribute else None
    if value is None or value.name not in _PLAIN_VALUES:
        return None
    if value.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(value.t)
        tensor.name = node.output[0]
        return [tensor]
    kind = TensorProto.FLOAT if "float" in value.name else TensorProto.INT64
    content = helper.get_attribute_value(value)
    dims = [len(content)] if isinstance(content, list | tuple) else []
    return [helper.make_tensor(node.output[0], kind, dims, content if dims else [content])]


def _shape(node: onnx.NodeProto, kinds: dict[str, onnx.TypeProto]) -> list[TensorProto] | None:
    """Return the shape of something whose axes are all declared, or those axes of it that the node asks for."""
    kind = kinds.get(node.input[0])
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = list(kind.tensor_type.shape.dim)
    start = onnx_graph.attribute_int(node, "start", default=0)
    end = onnx_graph.attribute_int(node, "end", default=len(dims))
    asked = dims[slice(start, end)]
    if not all(dim.HasField("dim_value") for dim in asked):
        return None
    return [helper.make_tensor(node.output[0], TensorProto.INT64, [len(asked)], [dim.dim_value for dim in asked])]


def _has_graphs(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _size_bytes(kind: onnx.TypeProto | None) -> int | None:
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    if kind.tensor_type.elem_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return None
    size = helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type).itemsize
    for dim in kind.tensor_type.shape.dim:
        if not dim.HasField("dim_value"):
            return None
        size *= dim.dim_value
    return int(size)


def _drop_idle(graph: onnx.GraphProto, *, keep: frozenset[str]) -> None:
    """Drop nodes that give what they get."""
    outputs = {value.name for each in graphs.graphs_of(graph) for value in each.output}
    remaining = []
    for node in graph.node:
        if node.name in keep or not _is_idle(node, graph) or outputs & set(node.output):
            remaining.append(node)
        else:
            _redirect(graph, node.output[0], node.input[0])
    if len(remaining) < len(graph.node):
        onnx_graph.keep_nodes(graph, remaining)


def _is_idle(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout":
        return False
    masks = set(node.output[1:]) - {""}
    if masks & {name for each in graph.node for name in onnx_graph.reads(each)} or masks & onnx_graph.output_names(
        graph
    ):
        return False
    training = node.input[2] if len(node.input) > 2 else ""  # noqa: PLR2004
    known = onnx_graph.constants(graph)
    return not training or (training in known and not numpy_helper.to_array(known[training]).any())


def _redirect(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graphs.nodes_of(graph):
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
