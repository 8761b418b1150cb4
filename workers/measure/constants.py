"""Values of a graph's constants: of weights as they are stored, and as they come out of their DequantizeLinear."""

from collections.abc import Iterable
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from workers.measure.engine import threads
from workers.measure.layers import Wiring

_FATAL = 4

Array = NDArray[Any]


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Open a graph in ONNX Runtime so that it computes what is written, in float: no quantized kernels of its own.

    Its int8 kernels saturate sums on CPUs without VNNI; a dequantized product in float32 is the integer product to
    within float rounding.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads(), 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def constants(proto: onnx.ModelProto, wiring: Wiring, names: Iterable[str]) -> dict[str, Array]:
    """Return the values of those of these tensors that are constant."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    wanted = [name for name in dict.fromkeys(names) if name in wiring.constants]
    values = {name: numpy_helper.to_array(stored[name]) for name in wanted if name in stored}
    computed = [name for name in wanted if name not in stored and name in wiring.makers]
    return values | (_computed(proto, wiring, computed) if computed else {})


def _computed(proto: onnx.ModelProto, wiring: Wiring, names: list[str]) -> dict[str, Array]:
    """Let ONNX Runtime work the constants out, all in one go."""
    nodes = _ancestors(wiring, names)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "constants",
        [],
        [helper.make_empty_tensor_value_info(name) for name in names],
        [tensor for tensor in proto.graph.initializer if tensor.name in used],
    )
    made = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    return dict(zip(names, session(made).run(names, {}), strict=True))


def _ancestors(wiring: Wiring, names: list[str]) -> list[NodeProto]:
    """Return the nodes that make these tensors, in the order they run."""
    found: dict[str, NodeProto] = {}
    waiting = list(names)
    while waiting:
        maker = wiring.makers.get(waiting.pop())
        if maker is not None and maker.name not in found:
            found[maker.name] = maker
            waiting.extend(maker.input)
    return sorted(found.values(), key=lambda node: wiring.position[node.name])
