"""The `verify` stage: does the float32 artifact say what the original said, and what does its graph declare?"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import openvino
from onnx import TensorProto, checker, defs, helper

from app.domain.errors import ConversionMismatch, UploadRefused, UploadUnreadable
from app.domain.reports import ConversionCheck
from app.domain.tensors import DType, Signature, TensorSpec
from workers.stages import Progress, VerifyResult, VerifySpec

# A float32 rounding is at most 2**-24 of its value. Two engines sum in different orders, and the error of a sum of n
# terms grows like sqrt(n) * 2**-24 (Higham 1993): about 1e-5 for n = 10**4, carried through some tens of layers. A
# wrong weight, layout or operator shows at 1e-2 and more.
TOLERANCE = 1e-3
_STANDARD_DOMAINS = ("", "ai.onnx")

Arrays = dict[str, npt.NDArray[Any]]


def verify(spec: VerifySpec, scratch: Path, progress: Progress) -> VerifyResult:
    """Check the artifact against the recorded answers; return its signature as the graph declares it.

    Raises:
        ConversionMismatch: it answers differently.
        UploadRefused: the graph is not plain standard ONNX in one file.
        UploadUnreadable: the graph is broken, or the engine does not take it.
    """
    progress(0.0, "checking the graph")
    artifact = scratch / spec.artifact
    graph = _checked_graph(artifact)
    signature = _signature(graph.graph)
    progress(0.3, "asking the engine")
    samples = _samples(scratch / spec.samples, signature)
    engine = _Engine(artifact)
    error = max(_error(signature, samples, engine, rows=rows) for rows in _row_counts(signature, samples))
    if not error <= TOLERANCE:
        raise ConversionMismatch(
            f"The float32 artifact's answers are {error:.2g} of the largest output away from those of {spec.original}; "
            f"at most {TOLERANCE:g} is taken: the model may depend on chance, or export wrongly."
        )
    rows = max((len(array) for array in samples.values() if array.ndim), default=1)
    check = ConversionCheck(rows=rows, max_error=error, tolerance=TOLERANCE, original=spec.original)
    return VerifyResult(signature=signature, parameters=_parameters(graph.graph), conversion=check)


def _checked_graph(path: Path) -> onnx.ModelProto:
    """Parse the graph anew: the stage that wrote it may have run hostile code."""
    graph = onnx.load(path, format="protobuf", load_external_data=False)
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(graph.graph)) or graph.functions:
        raise UploadRefused("The float32 artifact is not one self-contained graph.")
    for node in _nodes(graph.graph):
        if node.domain not in _STANDARD_DOMAINS or not defs.has(node.op_type):
            raise UploadRefused(f"The float32 artifact uses {node.op_type!r}, which is not a standard ONNX operator.")
    try:
        checker.check_model(graph, full_check=True)
    except (checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UploadUnreadable("The float32 artifact is not valid ONNX: export the model again.") from error
    return graph


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inner = [graph for node in graph.node for graph in _inner_graphs(node)]
    return [*graph.node, *(node for each in inner for node in _nodes(each))]


def _inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    single = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return single + [graph for attribute in node.attribute for graph in attribute.graphs]


def _tensors(graph: onnx.GraphProto) -> list[TensorProto]:
    sparse = [part for each in graph.sparse_initializer for part in (each.values, each.indices)]
    own = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
    many = [tensor for node in graph.node for attribute in node.attribute for tensor in attribute.tensors]
    inner = [tensor for node in graph.node for each in _inner_graphs(node) for tensor in _tensors(each)]
    return [*graph.initializer, *sparse, *own, *many, *inner]


def _parameters(graph: onnx.GraphProto) -> int:
    """Count the weights: the elements of floating-point constants."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in _tensors(graph) if tensor.data_type in floats)


def _signature(graph: onnx.GraphProto) -> Signature:
    """Read inputs and outputs; the batch is the symbol that every input has on its first axis."""
    symbols = {_symbol(value) for value in graph.input}
    batch = next(iter(symbols)) if len(symbols) == 1 else None
    return Signature(
        inputs=tuple(_spec(value, batch=batch) for value in graph.input),
        outputs=tuple(_spec(value, batch=batch) for value in graph.output),
    )


def _symbol(value: onnx.ValueInfoProto) -> str | None:
    dims = value.type.tensor_type.shape.dim
    return (dims[0].dim_param or None) if dims else None


def _spec(value: onnx.ValueInfoProto, *, batch: str | None) -> TensorSpec:
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)
    counts_rows = batch is not None and _symbol(value) == batch
    return TensorSpec(name=value.name, dtype=_dtype(value), shape=shape, batch_axis=0 if counts_rows else None)


def _dtype(value: onnx.ValueInfoProto) -> DType:
    number = value.type.tensor_type.elem_type
    try:
        return DType(helper.tensor_dtype_to_np_dtype(number).name)
    except (KeyError, ValueError) as error:
        name = TensorProto.DataType.Name(number)
        raise UploadRefused(f"Tensor {value.name!r} has the type {name}, which cannot be sent or received.") from error


def _samples(path: Path, signature: Signature) -> Arrays:
    """Load the recorded arrays, never as pickles."""
    inputs = {f"input:{spec.name}" for spec in signature.inputs}
    expected = inputs | {f"output:{spec.name}" for spec in signature.outputs}
    with np.load(path, allow_pickle=False) as file:
        if set(file.files) != expected:
            raise ConversionMismatch("The recorded answers do not name the inputs and outputs of the float32 artifact.")
        return {name: file[name] for name in file.files}


def _row_counts(signature: Signature, samples: Arrays) -> list[int | None]:
    """Ask about all recorded rows and, where rows stand alone, about the first by itself."""
    recorded = {len(samples[f"input:{spec.name}"]) for spec in signature.inputs if spec.batch_axis == 0}
    return [None, 1] if signature.batched and recorded and min(recorded) > 1 else [None]


class _Engine:
    def __init__(self, artifact: Path) -> None:
        try:
            self._compiled = openvino.Core().compile_model(artifact, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1][:200]
            raise UploadUnreadable(f"OpenVINO does not take the model: {reason}") from error

    def answer(self, inputs: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        results = self._compiled(inputs)
        return [np.asarray(results[position]) for position in range(len(self._compiled.outputs))]


def _error(signature: Signature, samples: Arrays, engine: _Engine, *, rows: int | None) -> float:
    def recorded(prefix: str, specs: tuple[TensorSpec, ...]) -> list[npt.NDArray[Any]]:
        arrays = [samples[f"{prefix}:{spec.name}"] for spec in specs]
        return arrays if rows is None else [array[:rows] for array in arrays]

    answers = engine.answer(recorded("input", signature.inputs))
    wanted = recorded("output", signature.outputs)
    return max(_distance(found, each) for found, each in zip(answers, wanted, strict=True))


def _distance(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Return the largest difference over the largest value; 1 for different shapes, places of NaN, or whole numbers."""
    if found.shape != wanted.shape:
        return 1.0
    if wanted.dtype.kind not in "fV":
        return 0.0 if np.array_equal(found, wanted) else 1.0
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return 1.0
    largest = float(np.max(np.abs(b[finite]), initial=0.0))
    difference = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
    return difference / largest if largest > 0 else difference
