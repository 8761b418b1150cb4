"""The `verify` stage: does the float32 artifact say what the original said, and what does its graph declare?"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import openvino
from onnx import TensorProto, helper

from app.domain.errors import ConversionMismatch, ToolchainFailed, UploadRefused, UploadUnreadable
from app.domain.reports import ConversionCheck
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import FLOAT32, Execution
from workers import graphs
from workers.measure.engine import Session
from workers.measure.image_input import check_preprocessing
from workers.stage_records.common import Progress
from workers.stage_records.importing import VerifyResult, VerifySpec
from workers.stage_records.measuring import Form

# A float32 rounding is at most 2**-24 of its value. Two engines sum in different orders, and the error of a sum of n
# terms grows like sqrt(n) * 2**-24 (Higham 1993): about 1e-5 for n = 10**4, carried through some tens of layers. A
# wrong weight, layout or operator shows at 1e-2 and more.
TOLERANCE = 1e-3

Arrays = dict[str, npt.NDArray[Any]]


def verify(spec: VerifySpec, scratch: Path, progress: Progress) -> VerifyResult:
    """Check the artifact against the recorded answers; return its signature as the graph declares it.

    Raises:
        ConversionMismatch: it answers differently.
        UploadRefused: the graph is not plain standard ONNX in one file, or no image can become its input.
        UploadUnreadable: the graph is broken, or the engine does not take it.
    """
    progress(0.0, "checking the graph")
    graph = _checked_graph(scratch / spec.artifact)
    signature = _signature(graph.graph)
    if spec.preprocessing is not None:
        check_preprocessing(spec.preprocessing, signature)
    progress(0.3, "asking the engine")
    samples = _samples(scratch / spec.samples, signature)
    error = _largest_error(spec, signature, samples, scratch=scratch)
    if not error <= TOLERANCE:
        raise ConversionMismatch(
            f"The float32 artifact's answers are {error:.2g} of the largest output away from those of {spec.original}; "
            f"at most {TOLERANCE:g} is taken: call module.eval() before the export, or export with another release."
        )
    rows = max((len(array) for array in samples.values() if array.ndim), default=1)
    check = ConversionCheck(rows=rows, max_error=error, tolerance=TOLERANCE, original=spec.original)
    return VerifyResult(signature=signature, parameters=_parameters(graph), conversion=check)


def _checked_graph(path: Path) -> onnx.ModelProto:
    """Parse the graph anew: the stage that wrote it may have run hostile code."""
    try:
        return graphs.read_plain(path)
    except graphs.NotPlain as error:
        raise UploadRefused(
            f"The float32 artifact {error}: export the model again, as one file, with standard operators only."
        ) from error
    except graphs.NotValid as error:
        raise UploadUnreadable(f"The float32 artifact {error}: export the model again.") from error


def _parameters(graph: onnx.ModelProto) -> int:
    """Count the weights: the elements of floating-point constants."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64)) for tensor in graphs.tensors_of(graph) if tensor.data_type in floats
    )


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


def _largest_error(spec: VerifySpec, signature: Signature, samples: Arrays, *, scratch: Path) -> float:
    float32 = Form(name=FLOAT32, artifact=spec.artifact, execution=Execution())
    try:
        session = Session.open(float32, signature, scratch=scratch, core=openvino.Core())
        return max(_error(signature, samples, session, rows=rows) for rows in _row_counts(signature, samples))
    except ToolchainFailed as error:
        raise UploadUnreadable(error.message) from error


def _error(signature: Signature, samples: Arrays, session: Session, *, rows: int | None) -> float:
    def recorded(prefix: str, specs: tuple[TensorSpec, ...]) -> Arrays:
        arrays = {spec.name: samples[f"{prefix}:{spec.name}"] for spec in specs}
        return arrays if rows is None else {name: array[:rows] for name, array in arrays.items()}

    answers = session.run(recorded("input", signature.inputs))
    wanted = recorded("output", signature.outputs).values()
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
