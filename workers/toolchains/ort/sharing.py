"""Parts what quantized and float layers share, so that quantizing the one leaves the other alone."""

from collections.abc import Iterable, Mapping

import onnx
from onnx import helper, numpy_helper

from workers import graphs
from workers.toolchains import graph as onnx_graph

# What ONNX Runtime's quantizer appends to a tensor's name for the names of its own.
_APPENDED = (
    *("_scale", "_zero_point", "_quantized", "_QuantizeLinear", "_DequantizeLinear"),
    *("_QuantizeLinear_Input", "_QuantizeLinear_Output", "_DequantizeLinear_Output"),
)


def make_room(graph: onnx.GraphProto, tensors: Iterable[str]) -> None:
    """Rename what has the names that the quantizer is going to give; it does not look whether they are taken."""
    fixed = {value.name for value in (*graph.input, *graph.output)}
    taken = {tensor.name for tensor in graph.initializer} | set(onnx_graph.writers(graph))
    for name in (f"{tensor}{end}" for tensor in tensors for end in _APPENDED):
        if name not in taken or name in fixed:
            continue
        other = onnx_graph.free_name(graph, f"{name}_own")
        for tensor in graph.initializer:
            tensor.name = other if tensor.name == name else tensor.name
        for node in graphs.nodes_of(graph):
            _rename(node.input, name, other)
            _rename(node.output, name, other)


def detach_outputs(graph: onnx.GraphProto, tensors: Iterable[str]) -> list[str]:
    """Give a tensor that is an output of the graph and also quantized a name of its own inside.

    ONNX Runtime's quantizer would hand out the rounded values.

    Returns:
        Names of the nodes that hand out the outputs from there; they are to read what was not rounded.
    """
    handing_out = []
    outputs = onnx_graph.output_names(graph)
    inputs = {value.name for value in graph.input}
    for name in tensors:
        if name not in outputs or name in inputs:
            continue
        inside = onnx_graph.free_name(graph, f"{name}_inside")
        for node in graph.node:
            _rename(node.input, name, inside)
            _rename(node.output, name, inside)
        handing_out.append(f"{inside}_out")
        graph.node.append(helper.make_node("Identity", [inside], [name], name=handing_out[-1]))
    return handing_out


def part_weights(graph: onnx.GraphProto, nodes: Iterable[str]) -> None:
    """Copy each weight that a node to quantize shares with one that stays in float."""
    quantized = set(nodes)
    tensors, readers = onnx_graph.constants(graph), onnx_graph.readers(graph)
    copies: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if node.name not in quantized or name not in tensors:
                continue
            if any(each.name not in quantized for each in readers[name]):
                if name not in copies:
                    array = numpy_helper.to_array(tensors[name])
                    copies[name] = onnx_graph.add_constant(graph, array, like=f"{name}_copy")
                node.input[place] = copies[name]


def own_weights(graph: onnx.GraphProto, kind: str) -> None:
    """Copy each weight that a node of this kind shares with any other."""
    tensors, readers = onnx_graph.constants(graph), onnx_graph.readers(graph)
    for node in graph.node:
        if node.op_type == kind and node.input[1] in tensors and len(readers[node.input[1]]) > 1:
            name = node.input[1]
            node.input[1] = onnx_graph.add_constant(graph, numpy_helper.to_array(tensors[name]), like=f"{name}_own")


def restore_inputs(graph: onnx.GraphProto, inputs: Mapping[str, list[str]]) -> None:
    """Let nodes read again what they read before quantizers were put in their way."""
    for node in graph.node:
        if node.name in inputs:
            node.input[:] = inputs[node.name]


def _rename(names: Iterable[str], old: str, new: str) -> None:
    for place, name in enumerate(list(names)):
        if name == old:
            names[place] = new  # type: ignore[index]  # a protobuf's repeated field
