"""What OpenVINO 2026.4.1 was seen to get wrong in a quantized graph, written so that it gets it right.

The rewritings leave the answers what they are, whatever the engine.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workers import graphs
from workers.toolchains import graph as onnx_graph
from workers.toolchains.evaluate import evaluate

# Far below half of the last bit of anything that a convolution adds it to, and no denormal number.
NEARLY_ZERO = np.float32(1e-30)
_SHIFT = 128
_BIAS, _ZERO_POINT = 2, 2
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# They pass on some of the values they are given.
_PICKING = frozenset({"Slice", "Split", "MaxPool", "Transpose", "Reshape", "Identity"})
_PAD_INPUTS = 2
_MATRIX_AXES = 2
_UNPACKING = frozenset({"DequantizeLinear", "Cast"})
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_EXTREMES = frozenset({"ReduceMax", "ReduceMin", "GlobalMaxPool"})
_LAYERS = _CONVOLUTIONS | {"MatMul", "Gemm", "LSTM", "GRU", "RNN"}
_AXES = 1
_FIRST_SPATIAL_AXIS = 2


def avoid_faults(graph: onnx.ModelProto) -> None:
    """Rewrite what OpenVINO would get wrong, or not read."""
    unpack_for_scans(graph)
    if not any(node.op_type == _QUANTIZE for node in graph.graph.node):
        return
    give_biases(graph)
    if any(node.op_type == "Concat" for node in graph.graph.node):
        make_unsigned(graph.graph)
    widen_pads(graph.graph)
    if any(node.op_type in _EXTREMES for node in graph.graph.node):
        set_extremes_apart(graph)


def give_biases(graph: onnx.ModelProto) -> None:
    """Give every convolution that has no bias, or zeros for one, a bias of 1e-30.

    Without, an int8 convolution with two readers, or with a ReLU and a negation behind it, was seen to have its scales
    applied twice or not at all.
    """
    kinds, known = onnx_graph.typed(graph), onnx_graph.constants(graph.graph)
    for node in graph.graph.node:
        if (
            node.op_type not in _CONVOLUTIONS
            or not onnx_graph.is_float32(kinds.get(node.output[0]))
            or not _is_zero(node, known)
        ):
            continue
        channels = _channels(node, kinds)
        if channels:
            bias = np.full(channels, NEARLY_ZERO, np.float32)
            name = onnx_graph.add_constant(graph.graph, bias, like=f"{node.name}_no_bias")
            node.input[:] = [*node.input[:_BIAS], name]


def widen_pads(graph: onnx.GraphProto) -> None:
    """Let a Pad of channels add a column too, and cut it off again, but where only numbers from 0 on pass.

    In 8 bits, a Pad of channels alone was seen to fill in the lowest number instead of 0.
    """
    writers, readers = onnx_graph.writers(graph), onnx_graph.readers(graph)
    known, nodes = onnx_graph.constants(graph), []
    for node in graph.node:
        nodes.append(node)
        if not _pads_channels(node, known) or _is_unsigned(node, writers, readers, known):
            continue
        sizes = numpy_helper.to_array(known[node.input[1]]).copy()
        sizes[-1] += 1
        given, wide = node.output[0], onnx_graph.free_name(graph, f"{node.output[0]}_wide")
        node.input[1] = onnx_graph.add_constant(graph, sizes, like=f"{node.name}_wide_pads")
        node.output[0] = wide
        bounds = [
            onnx_graph.add_constant(graph, np.array([number], np.int64), like=f"{node.name}_{name}")
            for name, number in (("start", 0), ("end", -1), ("axis", sizes.size // 2 - 1))
        ]
        nodes.append(helper.make_node("Slice", [wide, *bounds], [given], name=f"{node.name}_narrow"))
    onnx_graph.keep_nodes(graph, nodes)


def _is_unsigned(
    pad: onnx.NodeProto,
    writers: dict[str, onnx.NodeProto],
    readers: dict[str, list[onnx.NodeProto]],
    known: dict[str, TensorProto],
) -> bool:
    """Whether a Pad gets uint8 numbers with zero point 0, or gives all it has to quantizers that make such."""
    before = writers.get(pad.input[0])
    while before is not None and before.op_type in _PICKING:
        before = writers.get(before.input[0])
    behind = readers.get(pad.output[0], [])
    is_from = before is not None and before.op_type == _DEQUANTIZE and _is_zero_based(before, known)
    return is_from or (
        bool(behind) and all(each.op_type == _QUANTIZE and _is_zero_based(each, known) for each in behind)
    )


def _is_zero_based(node: onnx.NodeProto, known: dict[str, TensorProto]) -> bool:
    zero_point = known.get(node.input[_ZERO_POINT]) if len(node.input) > _ZERO_POINT else None
    if zero_point is None or zero_point.data_type != TensorProto.UINT8:
        return False
    return not numpy_helper.to_array(zero_point).any()


def set_extremes_apart(graph: onnx.ModelProto) -> None:
    """Put a Gather of the only entry between every ReduceMax, ReduceMin or GlobalMaxPool and a quantizer behind it.

    Without, OpenVINO runs the quantizer as part of the reduction, with what activations and constants come before it,
    and was seen to hold the extremes in 8-bit whole numbers meanwhile: rounded, and cut off at 0 or 127.
    """
    kinds, known = onnx_graph.typed(graph), onnx_graph.constants(graph.graph)
    readers, nodes = onnx_graph.readers(graph.graph), []
    for node in graph.graph.node:
        nodes.append(node)
        axes = _reduced_axes(node, kinds, known) if node.op_type in _EXTREMES else []
        if axes and _reaches_quantizer(node, readers):
            nodes.extend(_set_apart(graph.graph, node, axes))
    onnx_graph.keep_nodes(graph.graph, nodes)


def _set_apart(graph: onnx.GraphProto, node: onnx.NodeProto, axes: list[int]) -> list[onnx.NodeProto]:
    """Let a reduction keep its axes; return what picks the only entry of one and drops them all if it dropped them."""
    given, drops = node.output[0], not onnx_graph.attribute_int(node, "keepdims", default=1)
    node.output[0] = onnx_graph.free_name(graph, f"{given}_extremes")
    first = onnx_graph.add_constant(graph, np.array([0], np.int64), like=f"{node.name}_first")
    if not drops:
        return [helper.make_node("Gather", [node.output[0], first], [given], name=f"{node.name}_pick", axis=axes[0])]
    next(attribute for attribute in node.attribute if attribute.name == "keepdims").i = 1
    picked = onnx_graph.free_name(graph, f"{given}_picked")
    dropped = onnx_graph.add_constant(graph, np.array(axes, np.int64), like=f"{node.name}_dropped")
    return [
        helper.make_node("Gather", [node.output[0], first], [picked], name=f"{node.name}_pick", axis=axes[0]),
        helper.make_node("Squeeze", [picked, dropped], [given], name=f"{node.name}_drop"),
    ]


def _reduced_axes(node: onnx.NodeProto, kinds: dict[str, onnx.TypeProto], known: dict[str, TensorProto]) -> list[int]:
    """Return the axes that a reduction leaves one entry of, as it names them; none if there are none, or unknown."""
    dims = kinds[node.input[0]].tensor_type.shape.dim if node.input[0] in kinds else []
    if node.op_type == "GlobalMaxPool":
        return [_FIRST_SPATIAL_AXIS] if len(dims) > _FIRST_SPATIAL_AXIS else []
    named = [int(axis) for attribute in node.attribute if attribute.name == "axes" for axis in attribute.ints]
    if len(node.input) > _AXES and node.input[_AXES]:
        if node.input[_AXES] not in known:
            return []
        named = [int(axis) for axis in numpy_helper.to_array(known[node.input[_AXES]])]
    if named or onnx_graph.attribute_int(node, "noop_with_empty_axes", default=0):
        return named
    return list(range(len(dims)))


def _reaches_quantizer(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether a quantizer comes behind the node before any layer does."""
    waiting, seen = list(node.output), set(node.output)
    while waiting:
        for reader in readers.get(waiting.pop(), []):
            if reader.op_type == _QUANTIZE:
                return True
            if reader.op_type not in _LAYERS:
                waiting += [name for name in reader.output if name not in seen]
                seen.update(reader.output)
    return False


def make_unsigned(graph: onnx.GraphProto) -> None:
    """Write int8 activations as uint8: numbers and zero points 128 higher, on the same grid.

    In int8, what passed through a Concat was seen to lose its negative half.
    """
    readers, known = onnx_graph.readers(graph), onnx_graph.constants(graph)
    outputs = onnx_graph.output_names(graph)
    for node in graph.node:
        if node.op_type != _QUANTIZE or node.output[0] in outputs:
            continue
        pair = [node, *readers.get(node.output[0], [])]
        if all(_takes(each, known) for each in pair) and all(each.op_type == _DEQUANTIZE for each in pair[1:]):
            for each in pair:
                _shift(graph, each, known)


def unpack_for_scans(graph: onnx.ModelProto) -> None:
    """Give a Scan the weights it takes from outside as they are: OpenVINO does not read a Scan with packed ones."""
    scans = [node for node in graph.graph.node if node.op_type == "Scan"]
    made = onnx_graph.writers(graph.graph)
    wanted = {name for scan in scans for name in onnx_graph.reads(scan) if name not in scan.input and name in made}
    if not wanted:
        return
    known, kinds = onnx_graph.constants(graph.graph), onnx_graph.typed(graph)
    for name in sorted(wanted):
        node = made[name]
        if node.op_type not in _UNPACKING or not all(each in known for each in node.input if each):
            continue
        tensors = evaluate(node, known, kinds, opset=graphs.opset(graph))
        if tensors is not None:
            plain = onnx_graph.add_constant(graph.graph, numpy_helper.to_array(tensors[0]), like=f"{name}_plain")
            for scan in scans:
                _read_instead(scan, name, plain)


def _read_instead(scan: onnx.NodeProto, old: str, new: str) -> None:
    for attribute in scan.attribute:
        if attribute.HasField("g"):
            for node in graphs.nodes_of(attribute.g):
                node.input[:] = [new if name == old else name for name in node.input]


def _takes(node: onnx.NodeProto, known: dict[str, TensorProto]) -> bool:
    """Whether the node has a constant zero point in int8."""
    zero_point = known.get(node.input[_ZERO_POINT]) if len(node.input) > _ZERO_POINT else None
    return zero_point is not None and zero_point.data_type == TensorProto.INT8


def _shift(graph: onnx.GraphProto, node: onnx.NodeProto, known: dict[str, TensorProto]) -> None:
    old = node.input[_ZERO_POINT]
    shifted = (numpy_helper.to_array(known[old]).astype(np.int16) + _SHIFT).astype(np.uint8)
    node.input[_ZERO_POINT] = onnx_graph.add_constant(graph, shifted, like=f"{old}_unsigned")
    kept = [attribute for attribute in node.attribute if attribute.name != "output_dtype"]  # the zero point says it
    del node.attribute[:]
    node.attribute.extend(kept)


def _pads_channels(pad: onnx.NodeProto, known: dict[str, TensorProto]) -> bool:
    """Whether the node adds to the second axis and to no other."""
    if pad.op_type != "Pad" or len(pad.input) != _PAD_INPUTS or pad.input[1] not in known:
        return False
    sizes = numpy_helper.to_array(known[pad.input[1]]).reshape(2, -1)
    return sizes.shape[1] > _MATRIX_AXES and bool(sizes[:, 1].any()) and not np.delete(sizes, 1, axis=1).any()


def _channels(node: onnx.NodeProto, kinds: dict[str, onnx.TypeProto]) -> int | None:
    dims = kinds[node.input[1]].tensor_type.shape.dim if node.input[1] in kinds else []
    axis = onnx_graph.channel_axis(node)
    if len(dims) <= axis or not dims[axis].HasField("dim_value"):
        return None
    return int(dims[axis].dim_value) * (onnx_graph.attribute_int(node, "group", default=1) if axis else 1)


def _is_zero(node: onnx.NodeProto, known: dict[str, TensorProto]) -> bool:
    if len(node.input) <= _BIAS or not node.input[_BIAS]:
        return True
    return node.input[_BIAS] in known and not numpy_helper.to_array(known[node.input[_BIAS]]).any()
