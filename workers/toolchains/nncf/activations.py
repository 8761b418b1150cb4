"""What flows between layers: how many bytes of it a row makes, and the sign of the integers it is quantized to."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from workers import graphs
from workers.toolchains.nncf.engine import Engine

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SHIFT = 128
_STEPS, _SIGNED_STEPS = 255, 127


def bytes_of_row(graph: onnx.ModelProto, row: dict[str, Any]) -> int:
    """Return how many bytes the inputs of all layers with weights take for one calibration row.

    Raises:
        ERRORS: the graph does not run.
    """
    stored = {tensor.name for tensor in graph.graph.initializer}
    names = {name for node in graph.graph.node if node.op_type in _LAYERS for name in node.input if name}
    outputs = {name for node in graph.graph.node for name in node.output}
    wanted = sorted((names - stored) & outputs)
    fed: int = sum(array.nbytes for name, array in row.items() if name in names)
    if not wanted:
        return fed
    watched = onnx.ModelProto.FromString(graph.SerializeToString())
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    kept: int = sum(array.nbytes for array in Engine(watched).infer(row).values())
    return fed + kept


def to_uint8(proto: onnx.ModelProto) -> None:
    """Shift every activation's integers to uint8; what they stand for stays exactly the same: u8 = s8 + 128."""
    for _, zero_point in _of_activations(proto):
        value = numpy_helper.to_array(zero_point)
        if value.dtype == np.int8:
            _set(zero_point, (value.astype(np.int16) + _SHIFT).astype(np.uint8))


def to_int8(proto: onnx.ModelProto, *, symmetric: bool) -> None:
    """Bring every activation's integers to int8: shifted, or, if the zero point has to stay, half as fine.

    A range of 0 to m has 255 steps in uint8; around a zero point of 0, int8 has 127 on that side.
    """
    for scale, zero_point in _of_activations(proto):
        value = numpy_helper.to_array(zero_point)
        if value.dtype != np.uint8:
            continue
        if symmetric:
            _set(scale, (numpy_helper.to_array(scale) * (_STEPS / _SIGNED_STEPS)).astype(np.float32))
            _set(zero_point, value.astype(np.int8))
        else:
            _set(zero_point, (value.astype(np.int16) - _SHIFT).astype(np.int8))


def _of_activations(proto: onnx.ModelProto) -> list[tuple[onnx.TensorProto, onnx.TensorProto]]:
    """Return scale and zero point of every activation once: NNCF gives each quantizer its own."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    pairs = {
        (node.input[1], node.input[2])
        for node in graphs.nodes_of(proto.graph)
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored
    }
    return [(stored[scale], stored[zero_point]) for scale, zero_point in sorted(pairs)]


def _set(tensor: onnx.TensorProto, value: npt.NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
