"""Biases that a toolchain stored as integers, in float again: they are trained, and an engine rounds them itself."""

import numpy as np
import onnx
from onnx import numpy_helper

from workers.toolchains.octet.rounding.wiring import Wiring


def in_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the graph in which every DequantizeLinear of stored int32 is the float tensor that it gives."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    wiring = Wiring(made.graph)
    gone = [node for node in wiring.nodes if _is_bias(node, wiring)]
    for node in gone:
        stored, scale = (numpy_helper.to_array(wiring.initializers[name]) for name in node.input[:2])
        value = (stored.astype(np.float64) * scale).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        made.graph.node.remove(node)
    return made


def _is_bias(node: onnx.NodeProto, wiring: Wiring) -> bool:
    stored = wiring.initializers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    if stored is None or stored.data_type != onnx.TensorProto.INT32 or len(stored.dims) > 1:
        return False
    return node.input[1] in wiring.initializers
