"""Brings any ONNX graph into the form Octet keeps: standard operators, opset 13 or newer, weights inside, no notes."""

from pathlib import Path

import onnx
from onnx import checker, inliner, shape_inference

from app.domain.errors import UploadRefused, UploadUnreadable
from workers import graphs

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
    graphs.keep_standard_opset(inlined)
    modern = _modernised(inlined)
    _take_weights_off_inputs(modern.graph)
    graphs.strip(modern)
    graphs.name_nodes(modern.graph)
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
    for node in graphs.nodes_of(graph.graph):
        if not graphs.is_standard(node):
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise UploadRefused(
                f"Node {node.name or node.output[:1]!r} uses the operator {operator!r}, which is not in the ONNX "
                "standard: export the model with standard operators only."
            )


def _modernised(graph: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return graphs.modernised(graph)
    except graphs.CONVERT_ERRORS as error:
        raise UploadUnreadable(
            f"The model uses ONNX opset {graphs.opset(graph)} and cannot be brought to {graphs.MIN_OPSET}: export it "
            f"with opset {graphs.MIN_OPSET} or newer."
        ) from error


def _take_weights_off_inputs(graph: onnx.GraphProto) -> None:
    """Before IR version 4 every weight was listed as an input with a default value."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [each for each in graph.input if each.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


def _checked(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        checker.check_model(proto)
        inferred = shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (checker.ValidationError, shape_inference.InferenceError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UploadUnreadable(f"The ONNX graph contradicts itself: {reason}: export it again.") from error
    _copy_output_shapes(proto.graph, inferred.graph)
    return proto


def _copy_output_shapes(graph: onnx.GraphProto, inferred: onnx.GraphProto) -> None:
    for declared, found in zip(graph.output, inferred.output, strict=True):
        if not declared.type.tensor_type.HasField("shape"):
            declared.type.CopyFrom(found.type)
