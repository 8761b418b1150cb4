"""ONNX graphs as toolchains take them: read at a recent opset with named nodes, and the questions they ask of one."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper, shape_inference

from app.domain.errors import ToolchainFailed
from workers import graphs

_NAMES_SHOWN = 5
_LONGEST_SHOWN = 80
# Constants up to here may say what shape something has; larger ones are weights.
_LARGEST_SHAPE_CONSTANT = 1024


def load_graph(path: Path) -> onnx.ModelProto:
    """Load the graph at `path`, at opset 13 or later.

    Raises:
        ToolchainFailed: it cannot be read, or cannot be raised to that opset.
    """
    try:
        graph = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ToolchainFailed(f"The float32 artifact is not an ONNX file that can be read ({error}).") from error
    graph = _modernised(graph)
    graphs.keep_standard_opset(graph)
    graphs.name_nodes(graph.graph)
    return graph


def check_layers(named: Iterable[str], known: Iterable[str], *, field: str) -> None:
    """Check that a recipe names nodes of the graph.

    Raises:
        ToolchainFailed: a name that no node has; the message shows names like it.
    """
    names = list(dict.fromkeys(known))
    for name in named:
        if name not in names:
            near = get_close_matches(name, names, n=_NAMES_SHOWN, cutoff=0.3) or names[:_NAMES_SHOWN]
            raise ToolchainFailed(
                f"{field} names {name[:_LONGEST_SHOWN]!r}, but the graph has no such node; among its {len(names)} "
                f"nodes are {', '.join(near)}."
            )


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Walk the names a node reads, those that its inner graphs take from outside too; some may be their own."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for each in inner.node:
                yield from reads(each)
            yield from (value.name for value in inner.output)


def readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return which nodes of the outer graph read each name, a node as often as it reads it."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in reads(node):
            found.setdefault(name, []).append(node)
    return found


def writers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return which node of the outer graph writes each name."""
    return {name: node for node in graph.node for name in node.output if name}


def output_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the graph's outputs."""
    return {value.name for value in graph.output}


def constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the weights that nobody can set from outside: initializers that are no inputs."""
    inputs = {value.name for value in graph.input}
    return {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}


def replace_constant(tensor: TensorProto, array: npt.NDArray[np.generic]) -> None:
    """Give an initializer new values under its old name."""
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, order="C"), tensor.name))


def add_constant(graph: onnx.GraphProto, array: npt.NDArray[np.generic], *, like: str) -> str:
    """Add an initializer and return its name: `like`, or that with a number where it is taken."""
    name = free_name(graph, like)
    graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
    return name


def free_name(graph: onnx.GraphProto, like: str) -> str:
    """Return a name that no tensor of the graph has, nor of a graph inside."""
    taken = {tensor.name for each in graphs.graphs_of(graph) for tensor in each.initializer}
    taken |= {value.name for each in graphs.graphs_of(graph) for value in (*each.input, *each.output)}
    taken |= {name for node in graphs.nodes_of(graph) for name in (*node.input, *node.output)}
    name, number = like, 1
    while name in taken:
        number += 1
        name = f"{like}_{number}"
    return name


def keep_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Make these the graph's nodes."""
    # copied first: the nodes given may be views of those about to go
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node behind those whose outputs it reads, and keep the order otherwise.

    Raises:
        ToolchainFailed: they read each other in a circle.
    """
    missing = {name for node in graph.node for name in node.output if name}
    waiting = list(graph.node)
    ordered: list[onnx.NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if any(name in missing for name in reads(node)):
                later.append(node)
                continue
            missing.difference_update(node.output)
            ordered.append(node)
        if len(later) == len(waiting):
            raise ToolchainFailed("The toolchain made a graph whose nodes read each other in a circle: try another.")
        waiting = later
    keep_nodes(graph, ordered)


def typed(graph: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Return the type and, as far as it is known, the shape of every tensor of the outer graph.

    Raises:
        ToolchainFailed: the graph contradicts itself.
    """
    skeleton = onnx.ModelProto(ir_version=graph.ir_version, opset_import=graph.opset_import)
    inner = skeleton.graph
    inner.name = graph.graph.name
    inner.node.extend(graph.graph.node)
    inner.output.extend(graph.graph.output)
    inner.input.extend(graph.graph.input)
    listed = {value.name for value in graph.graph.input}
    for tensor in graph.graph.initializer:
        if tensor.ByteSize() <= _LARGEST_SHAPE_CONSTANT:
            inner.initializer.append(tensor)
        elif tensor.name not in listed:
            inner.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    try:
        inferred = shape_inference.infer_shapes(skeleton).graph
    except (shape_inference.InferenceError, ValueError) as error:
        raise ToolchainFailed(f"The float32 graph contradicts itself ({error}): export the model again.") from error
    found = {value.name: value.type for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    small = {tensor.name: tensor for tensor in graph.graph.initializer if tensor.name not in found}
    return found | {
        name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims) for name, tensor in small.items()
    }


def channel_axis(node: onnx.NodeProto) -> int:
    """Return the axis of a layer's weight that counts its output channels; for MatMul from the end."""
    if node.op_type == "MatMul":
        return -1
    if node.op_type == "Gemm":
        return 0 if attribute_int(node, "transB", default=0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def attribute_int(node: onnx.NodeProto, name: str, *, default: int) -> int:
    """Return an integer attribute of a node."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def is_float32(kind: onnx.TypeProto | None) -> bool:
    """Whether a tensor is known to be float32."""
    return kind is not None and kind.HasField("tensor_type") and kind.tensor_type.elem_type == TensorProto.FLOAT


def _modernised(graph: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return graphs.modernised(graph)
    except graphs.CONVERT_ERRORS as error:
        raise ToolchainFailed(
            f"The graph uses opset {graphs.opset(graph)}, quantizing needs {graphs.MIN_OPSET} and it cannot be raised "
            f"({error}): export the model again with a newer opset."
        ) from error
