"""One node of a graph, computed by ONNX Runtime on constants."""

from collections.abc import Mapping

import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as states

ONNXRUNTIME_ERRORS = (
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NotImplemented,
    states.RuntimeException,
)
"""What ONNX Runtime raises about a graph or about what it is fed."""

# Types whose values cannot be handed over as arrays.
_BEYOND_NUMPY = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.BFLOAT16})
_FATAL = 4
_IR_VERSION = 10


def evaluate(
    node: onnx.NodeProto, known: Mapping[str, TensorProto], kinds: Mapping[str, onnx.TypeProto], *, opset: int
) -> list[TensorProto] | None:
    """Return what a node gives, one tensor for each output.

    Args:
        known: at least the node's inputs, by name.
        kinds: at least the types of its outputs.

    Returns:
        None where ONNX Runtime has no kernel for it, or it fails on these inputs.
    """
    read = list(dict.fromkeys(name for name in node.input if name))
    names = [name for name in read if known[name].data_type not in _BEYOND_NUMPY]
    outputs = [name for name in node.output if name]
    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_tensor_value_info(name, known[name].data_type, known[name].dims) for name in names],
        [onnx.ValueInfoProto(name=name, type=kinds[name]) for name in outputs],
        [known[name] for name in read if name not in names],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(outputs, {name: numpy_helper.to_array(known[name]) for name in names})
    except (*ONNXRUNTIME_ERRORS, RuntimeError, ValueError, TypeError):
        return None
    return [numpy_helper.from_array(array, name) for name, array in zip(outputs, found, strict=True)]
