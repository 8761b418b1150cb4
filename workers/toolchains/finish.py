"""What every variant's graph goes through before it counts as made: cleaned, checked, opened by ONNX Runtime."""

from pathlib import Path

import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from app.domain.errors import ToolchainFailed
from app.domain.tensors import Signature
from workers import graphs
from workers.stages import AcceptResult, AcceptSpec, Progress

ONNXRUNTIME_ERRORS = (
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NotImplemented,
    states.RuntimeException,
)
_KEEP_FLOAT = ": name the layers it stumbles over in float_layers, or try another recipe."


def finish(graph: onnx.ModelProto, signature: Signature, *, path: Path) -> None:
    """Strip what is no use at run time, check the graph and write it to `path`.

    Raises:
        ToolchainFailed: it is no valid graph, lost its batch axis, or ONNX Runtime does not open it.
    """
    graphs.drop_unused_weights(graph.graph)
    graphs.strip(graph)
    _check_inputs(graph, signature)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ToolchainFailed(f"The toolchain made a graph that is not valid ONNX ({error}){_KEEP_FLOAT}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # it is opened, not run: no threads needed
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ONNXRUNTIME_ERRORS as error:
        raise ToolchainFailed(f"ONNX Runtime does not open the variant ({error}){_KEEP_FLOAT}") from error


def accept(spec: AcceptSpec, scratch: Path, progress: Progress) -> AcceptResult:
    """Check an artifact that was made in a process which may have run hostile code: read it anew, as if uploaded.

    Raises:
        ToolchainFailed: it is not plain standard ONNX in one file.
    """
    raise NotImplementedError


def _check_inputs(graph: onnx.ModelProto, signature: Signature) -> None:
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.graph.input}
    for spec in signature.inputs:
        if spec.name not in shapes:
            raise ToolchainFailed(f"The toolchain lost the model's input {spec.name!r}{_KEEP_FLOAT}")
        if spec.batch_axis is not None and shapes[spec.name][spec.batch_axis].HasField("dim_value"):
            raise ToolchainFailed(f"The toolchain fixed the batch axis of the model's input {spec.name!r}{_KEEP_FLOAT}")
