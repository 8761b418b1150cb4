"""The `bfloat16` variant: weights stored in half the bytes, cast back where they are used, run in bfloat16."""

from pathlib import Path

import ml_dtypes
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

from app.domain.errors import PrecisionUnavailable, ToolchainFailed
from app.domain.variants import Execution
from workers.openvino_engine import has_bfloat16
from workers.stages import Progress, TransformSpec
from workers.toolchains.made import Made

# Biases, scales and the small constants that operators read as parameters gain nothing.
LEAST_ELEMENTS = 64
_MATRIX_AXES = 2


def transform(graph: onnx.ModelProto, _spec: TransformSpec, _scratch: Path, progress: Progress) -> Made:
    """Store every float32 weight of two or more axes as bfloat16, followed by a Cast to float32.

    The cast is exact; what rounds is the storing (8 bits of significand instead of 24), and the engine's own
    bfloat16 arithmetic, which the variant's `Execution` asks for.

    Raises:
        PrecisionUnavailable: this CPU has no bfloat16 instructions.
        ToolchainFailed: there is no such weight.
    """
    check_cpu()
    progress(0.1, "casting the weights to bfloat16")
    inputs = {value.name for value in graph.graph.input} | {value.name for value in graph.graph.output}
    weights = [tensor for tensor in graph.graph.initializer if _is_weight(tensor) and tensor.name not in inputs]
    if not weights:
        raise ToolchainFailed(
            f"The graph holds no float32 weight of {LEAST_ELEMENTS} elements or more to cast: serve float32."
        )
    casts = [_shorten(tensor) for tensor in weights]
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return Made(graph=graph, execution=Execution(float_precision="bfloat16"))


def check_cpu() -> None:
    """Raise `PrecisionUnavailable` unless the engine has bfloat16 kernels for this CPU."""
    if not has_bfloat16(openvino.Core()):
        raise PrecisionUnavailable(
            "This CPU has no bfloat16 instructions: use int8, or a worker with avx512_bf16 or AMX."
        )


def _is_weight(tensor: TensorProto) -> bool:
    elements = 1
    for size in tensor.dims:
        elements *= size
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= _MATRIX_AXES and elements >= LEAST_ELEMENTS


def _shorten(tensor: TensorProto) -> onnx.NodeProto:
    """Replace the initializer by its bfloat16 form and return the node that gives the old name its value."""
    name = f"{tensor.name}_bfloat16"
    short = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16), name)
    node = helper.make_node("Cast", [name], [tensor.name], name=f"cast_{tensor.name}", to=TensorProto.FLOAT)
    tensor.CopyFrom(short)
    return node
