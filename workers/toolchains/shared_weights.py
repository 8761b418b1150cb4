"""Weights that are read in more than one way, each way given its own: what is quantized has one scale per channel."""

import onnx
from onnx import numpy_helper

from workers.toolchains import graph as onnx_graph

# Where each operator keeps its weight, or its lookup table.
_WEIGHT_AT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
_MATRIX_AXES = 2


def part_by_axis(graph: onnx.GraphProto) -> None:
    """Copy a weight for the readers whose channels lie on another axis than those of its first reader.

    One scale per channel fits one of them only: ONNX Runtime was seen to refuse the other, OpenVINO to answer wrongly.
    """
    known = onnx_graph.constants(graph)
    names: dict[tuple[str, int], str] = {}
    first: dict[str, int] = {}
    for node in graph.node:
        place = _WEIGHT_AT.get(node.op_type, -1)
        name = node.input[place] if 0 <= place < len(node.input) else ""
        if name not in known or len(known[name].dims) < _MATRIX_AXES:
            continue
        axis = _axis(node) % len(known[name].dims)
        if first.setdefault(name, axis) == axis:
            continue
        if (name, axis) not in names:
            array = numpy_helper.to_array(known[name])
            names[name, axis] = onnx_graph.add_constant(graph, array, like=f"{name}_axis{axis}")
        node.input[place] = names[name, axis]


def part_from_inner_graphs(graph: onnx.GraphProto) -> None:
    """Copy each weight that an inner graph reads and a node of the outer graph too: quantizers forget the inner one."""
    known = onnx_graph.constants(graph)
    inside = {name for node in graph.node for name in set(onnx_graph.reads(node)) - set(node.input)}
    copies: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name not in inside or name not in known:
                continue
            if name not in copies:
                array = numpy_helper.to_array(known[name])
                copies[name] = onnx_graph.add_constant(graph, array, like=f"{name}_outside")
            node.input[place] = copies[name]


def _axis(node: onnx.NodeProto) -> int:
    return 0 if node.op_type == "Gather" else onnx_graph.channel_axis(node)
