"""Brings any ONNX graph into the form Octet keeps: standard operators, opset 13 or newer, weights inside, no notes."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import checker, defs, inliner, shape_inference, version_converter

from app.domain.errors import UploadRefused, UploadUnreadable

STANDARD_DOMAINS = ("", "ai.onnx")
# From here on QuantizeLinear takes one scale per channel.
MIN_OPSET = 13
_MIN_IR_VERSION = 8
# A protobuf message, and so an ONNX file without external data, ends here.
MAX_FILE_BYTES = 2**31 - 1


def tidy(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in Octet's form, checked.

    Raises:
        UploadRefused: an operator outside the ONNX standard, or more weights than one file can hold.
        UploadUnreadable: the graph contradicts itself, or is too old to be brought up to date.
    """
    check_size(graph)
    inlined = inliner.inline_local_functions(graph) if graph.functions else graph
    refuse_custom_operators(inlined)
    _keep_standard_opset(inlined)
    modern = _modernised(inlined)
    _take_weights_off_inputs(modern.graph)
    _strip(modern)
    _name_nodes(modern.graph)
    modern.ir_version = max(modern.ir_version, _MIN_IR_VERSION)
    return _checked(modern)


def save(graph: onnx.ModelProto, path: Path) -> None:
    """Write a graph as one file."""
    check_size(graph)
    onnx.save(graph, path)


def check_size(graph: onnx.ModelProto) -> None:
    """Refuse weights that one ONNX file cannot hold."""
    size = sum(tensor.ByteSize() for tensor in graph.graph.initializer)
    if size > MAX_FILE_BYTES:
        raise UploadRefused(
            f"The model's weights take {size:,} bytes, but one ONNX file holds at most {MAX_FILE_BYTES:,}: "
            "upload a smaller model."
        )


def refuse_custom_operators(graph: onnx.ModelProto) -> None:
    """Refuse nodes that only the uploader's own code could run."""
    for node in nodes_of(graph.graph):
        standard = node.domain in STANDARD_DOMAINS and defs.has(node.op_type)
        if not standard:
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise UploadRefused(
                f"Node {node.name or node.output[:1]!r} uses the operator {operator!r}, which is not in the ONNX "
                "standard: export the model with standard operators only."
            )


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Walk all nodes, those of inner graphs too."""
    for node in graph.node:
        yield node
        for inner in _graphs_in(node):
            yield from nodes_of(inner)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Walk a graph and all inner graphs."""
    yield graph
    for node in graph.node:
        for inner in _graphs_in(node):
            yield from graphs_of(inner)


def _graphs_in(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return inner + [graph for attribute in node.attribute for graph in attribute.graphs]


def opset(graph: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a graph uses."""
    versions = [each.version for each in graph.opset_import if each.domain in STANDARD_DOMAINS]
    return max(versions, default=1)


def _keep_standard_opset(graph: onnx.ModelProto) -> None:
    version = opset(graph)
    del graph.opset_import[:]
    graph.opset_import.add(domain="", version=version)


def _modernised(graph: onnx.ModelProto) -> onnx.ModelProto:
    if opset(graph) >= MIN_OPSET:
        return graph
    try:
        return version_converter.convert_version(graph, MIN_OPSET)
    except (version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise UploadUnreadable(
            f"The model uses ONNX opset {opset(graph)} and cannot be brought to {MIN_OPSET}: export it with opset "
            f"{MIN_OPSET} or newer."
        ) from error


def _take_weights_off_inputs(graph: onnx.GraphProto) -> None:
    """Before IR version 4 every weight was listed as an input with a default value."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [each for each in graph.input if each.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


def _strip(model: onnx.ModelProto) -> None:
    """Drop notes and traces of the exporter: they can outweigh a small model, and name the uploader's files."""
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    for graph in graphs_of(model.graph):
        graph.ClearField("value_info")
        described = (graph, *graph.node, *graph.initializer, *graph.input, *graph.output)
        for each in described:
            each.ClearField("doc_string")
            each.ClearField("metadata_props")


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: recipes name the layers to leave in float."""
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        checker.check_model(model)
        inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (checker.ValidationError, shape_inference.InferenceError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UploadUnreadable(f"The ONNX graph contradicts itself: {reason}: export it again.") from error
    _copy_output_shapes(model.graph, inferred.graph)
    return model


def _copy_output_shapes(graph: onnx.GraphProto, inferred: onnx.GraphProto) -> None:
    for declared, found in zip(graph.output, inferred.output, strict=True):
        if not declared.type.tensor_type.HasField("shape"):
            declared.type.CopyFrom(found.type)
