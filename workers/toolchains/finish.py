"""What every variant's graph goes through before it counts as made: cleaned, checked, opened by ONNX Runtime."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import onnx
import onnxruntime
from onnx import helper

from app.domain.errors import ToolchainFailed
from app.domain.tensors import Signature, TensorSpec
from app.domain.variants import Execution
from workers import graphs
from workers.openvino_engine import OpenVinoSession
from workers.stage_records.common import VARIANT_OUTPUT, Progress
from workers.stage_records.making import AcceptResult, AcceptSpec
from workers.toolchains.evaluate import ONNXRUNTIME_ERRORS
from workers.toolchains.openvino_faults import avoid_faults

__all__ = ["ONNXRUNTIME_ERRORS", "accept", "finish"]

_KEEP_FLOAT = ": name the layers it stumbles over in float_layers, or try another recipe."


def finish(graph: onnx.ModelProto, signature: Signature, *, path: Path) -> None:
    """Strip what is no use at run time, check the graph and write it to `path`.

    Raises:
        ToolchainFailed: it is no valid graph, lost its batch axis, or ONNX Runtime does not open it.
    """
    avoid_faults(graph)
    graphs.drop_unused_weights(graph.graph)
    graphs.strip(graph)
    _check_inputs(graph, signature)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ToolchainFailed(
            f"The toolchain made a graph that is not valid ONNX ({_in_short(error)}){_KEEP_FLOAT}"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # it is opened, not run: no threads needed
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ONNXRUNTIME_ERRORS as error:
        raise ToolchainFailed(f"ONNX Runtime does not open the variant ({_in_short(error)}){_KEEP_FLOAT}") from error


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def accept(spec: AcceptSpec, scratch: Path, progress: Progress) -> AcceptResult:
    """Check an artifact that was made in a process which may have run hostile code: read it anew, as if uploaded.

    Raises:
        ToolchainFailed: it is not plain standard ONNX in one file, has other inputs or outputs than the signature, or
            the engine does not open it.
    """
    progress(0.0, "reading the variant's graph anew")
    path = scratch / spec.artifact
    try:
        graph = graphs.read_plain(path)
    except (graphs.NotPlain, graphs.NotValid) as error:
        raise ToolchainFailed(f"The variant's graph {error}: nothing was published.") from error
    _check_declared(graph.graph.input, spec.signature.inputs, kind="inputs")
    _check_declared(graph.graph.output, spec.signature.outputs, kind="outputs")
    progress(0.5, "opening the variant's graph")
    try:
        OpenVinoSession(path.read_bytes(), Execution(), spec.signature, len(os.sched_getaffinity(0)))
    except RuntimeError as error:
        said = " ".join(str(error).split())[-200:]
        raise ToolchainFailed(f"OpenVINO does not open the variant's graph ({said}): try another recipe.") from error
    progress(1.0, "accepted the variant's graph")
    return AcceptResult(artifact=VARIANT_OUTPUT)


def _check_declared(
    found: Sequence[onnx.ValueInfoProto], wanted: tuple[TensorSpec, ...], *, kind: Literal["inputs", "outputs"]
) -> None:
    """Check names, types, ranks and sizes; a symbolic axis takes any size, so it must be symbolic in both."""
    values = {value.name: value for value in found}
    if set(values) != {spec.name for spec in wanted} or len(values) != len(found):
        names = ", ".join(name[:80] for name in sorted(values))
        raise ToolchainFailed(f"The variant's {kind} are {names}, not those of the model: nothing was published.")
    for spec in wanted:
        declared = _declared(values[spec.name], spec)
        if declared != (spec.dtype, _axes(spec)):
            raise ToolchainFailed(
                f"The variant declares {declared[0]}{[size or '?' for size in declared[1]]} for {spec.name!r}, but the "
                f"model has {spec.describe()}: nothing was published."
            )


def _declared(value: onnx.ValueInfoProto, spec: TensorSpec) -> tuple[str, tuple[int | None, ...]]:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ToolchainFailed(f"The variant's {spec.name!r} is no tensor with a declared rank: nothing was published.")
    try:
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)
    except KeyError:
        dtype = f"type {tensor.elem_type}"
    return dtype, tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)


def _axes(spec: TensorSpec) -> tuple[int | None, ...]:
    return tuple(None if axis == spec.batch_axis else size for axis, size in enumerate(spec.shape))


def _check_inputs(graph: onnx.ModelProto, signature: Signature) -> None:
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.graph.input}
    for spec in signature.inputs:
        if spec.name not in shapes:
            raise ToolchainFailed(f"The toolchain lost the model's input {spec.name!r}{_KEEP_FLOAT}")
        if spec.batch_axis is not None and shapes[spec.name][spec.batch_axis].HasField("dim_value"):
            raise ToolchainFailed(f"The toolchain fixed the batch axis of the model's input {spec.name!r}{_KEEP_FLOAT}")
