"""ONNX graphs, whoever made them: walking them, and bringing them into the form Octet keeps."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, checker, defs, shape_inference, version_converter

STANDARD_DOMAINS = ("", "ai.onnx")
# From here on QuantizeLinear takes one scale per channel, and Cast knows bfloat16.
MIN_OPSET = 13
# What `modernised` raises on a graph that it cannot raise.
CONVERT_ERRORS: tuple[type[Exception], ...] = (version_converter.ConvertError, RuntimeError, ValueError)


# A protobuf message, and so an ONNX file without external data, ends here.
MAX_FILE_BYTES = 2**31 - 1


class NotPlain(Exception):
    """A graph that needs more than its own file and the standard's operators. Says what, after the graph's name."""


class NotValid(Exception):
    """No ONNX, or a graph that contradicts itself. Says how, after the graph's name."""


def read_plain(path: Path) -> onnx.ModelProto:
    """Read a graph from a file that a hostile process may have written, and check that it is all it says.

    Raises:
        NotValid: it is no ONNX, too large for one file, or not valid.
        NotPlain: it refers to other files, or defines or uses operators outside the standard.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise NotValid(f"is larger than {MAX_FILE_BYTES:,} bytes, where an ONNX file ends")
    try:
        graph = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise NotValid("is no ONNX file") from error
    if any(map(is_external, tensors_of(graph))) or graph.functions or graph.training_info:
        raise NotPlain("is not one self-contained graph")
    for node in nodes_of(graph.graph):
        if not is_standard(node):
            raise NotPlain(f"uses {node.op_type[:80]!r}, which is not a standard ONNX operator")
    try:
        checker.check_model(graph, full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise NotValid("is not valid ONNX") from error
    return graph


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Walk a graph and all graphs inside its nodes."""
    yield graph
    yield from _graphs_in(graph.node)


def _graphs_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs_of(inner)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Walk all nodes, those of inner graphs too."""
    for each in graphs_of(graph):
        yield from each.node


def tensors_of(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Walk every tensor, wherever the format allows one: weights, constants, sparse values, functions, training graphs.

    It follows the format's own description of its messages, so that no place is forgotten: an engine may read a tensor
    whose data lies in another file from any of them.
    """
    waiting: list[Message] = [proto]
    while waiting:
        message = waiting.pop()
        if isinstance(message, TensorProto):
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend(value if field.is_repeated else [value])


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's data lies, or claims to lie, outside of it."""
    return tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data) > 0


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether the ONNX standard knows the node's operator, so that any engine may run it."""
    return node.domain in STANDARD_DOMAINS and defs.has(node.op_type)


def opset(proto: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a graph uses."""
    return max((entry.version for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS), default=1)


def keep_standard_opset(proto: onnx.ModelProto) -> None:
    """Declare the standard operators alone: NNCF takes the first entry for the opset."""
    version = opset(proto)
    del proto.opset_import[:]
    proto.opset_import.add(domain="", version=version)


def modernised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph at opset 13 or newer.

    Raises:
        CONVERT_ERRORS: it cannot be brought there.
    """
    return proto if opset(proto) >= MIN_OPSET else version_converter.convert_version(proto, MIN_OPSET)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: recipes name the layers to leave in float."""
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)


def strip(proto: onnx.ModelProto) -> None:
    """Drop notes and traces of the exporter: they can outweigh a small model, and name the uploader's files."""
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
    for graph in graphs_of(proto.graph):
        graph.ClearField("value_info")
        for each in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
            each.ClearField("doc_string")
            each.ClearField("metadata_props")


def drop_unused_weights(graph: onnx.GraphProto) -> None:
    """Drop the weights of the outer graph that neither a node, of an inner graph too, nor an output names."""
    used = {name for node in nodes_of(graph) for name in node.input}
    used |= {value.name for each in graphs_of(graph) for value in each.output}
    # one by one, from the end: a list of those kept would be a second copy of the whole model
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in used:
            del graph.initializer[place]
