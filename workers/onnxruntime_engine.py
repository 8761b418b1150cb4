"""ONNX Runtime as the engine: runs a variant in float32 arithmetic on the CPU, in as many lanes as it is asked for."""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution, Precision
from workers.pixels import PixelInput

# Everything it may say about a graph or its inputs; none of it is a RuntimeError.
_ERRORS: tuple[type[Exception], ...] = (
    states.EPFail,
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoModel,
    states.NotImplemented,
    states.RuntimeException,
    ValueError,
)
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_SHRINK = 4
# A node's operator as ONNX files write it (protobuf: field 4, length, text).
_QUANTIZERS = (b"\x22\x0eQuantizeLinear", b"\x22\x15DynamicQuantizeLinear")

Arrays = Mapping[str, npt.NDArray[Any]]


class OnnxRuntimeSession:
    """One loaded graph that several threads run at once, each in a lane.

    All lanes share the weights and the arena: a session of its own for every lane was measured to be no faster.

    Args:
        artifact: the file's bytes.
        threads: for all lanes together; a caller's own thread works too.
        pixels: what turns pixels into the input, which then is uint8[n, height, width, channels]. NumPy does it before
            the graph: nodes of the graph were measured to take six times as long.

    Raises:
        RuntimeError: ONNX Runtime cannot read the artifact, cannot run what `execution` says, or the graph takes no
            pixels.
    """

    def __init__(
        self,
        artifact: bytes,
        execution: Execution,
        signature: Signature,
        threads: int,
        *,
        streams: int = 1,
        pixels: ImagePreprocessing | None = None,
    ) -> None:
        _check(execution)
        self._pixels = None if pixels is None else PixelInput.of(signature, pixels)
        try:
            options = _options(artifact, threads=threads, streams=streams)
            self._session: Any = onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
        except _ERRORS as error:
            raise RuntimeError(f"ONNX Runtime does not open the artifact: {error}") from error
        self.engine_version = f"onnxruntime {onnxruntime.__version__}"
        self.float_precision: Precision = "float32"
        self.lanes = streams
        _check_names(self._session.get_inputs(), signature.inputs)
        _check_names(self._session.get_outputs(), signature.outputs)
        self._outputs = [spec.name for spec in signature.outputs]
        self._raw = {spec.name for spec in (*signature.inputs, *signature.outputs) if spec.dtype is DType.BFLOAT16}
        self._largest_bytes = 0
        self._shrinking = onnxruntime.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def infer(self, inputs: Arrays, /, *, lane: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Run once, reading in place what lies in C order, copying the rest. The answer is the caller's to keep.

        Raises:
            RuntimeError: the graph does not take these arrays, or failed on them.
        """
        if not 0 <= lane < self.lanes:
            raise RuntimeError(f"Lane {lane} was asked of a session with {self.lanes}.")
        if self._pixels is not None:
            inputs = {name: self._pixels.array(array) for name, array in inputs.items()}
        plain = {name: np.require(array, requirements=["C_CONTIGUOUS", "ALIGNED"]) for name, array in inputs.items()}
        options = self._shrinking if self._has_shrunk(plain) else None
        try:
            answers = self._run_raw(plain, options) if self._raw else self._session.run(self._outputs, plain, options)
        except _ERRORS as error:
            raise RuntimeError(f"ONNX Runtime cannot run the graph on these arrays: {error}") from error
        return dict(zip(self._outputs, answers, strict=True))

    def _has_shrunk(self, inputs: Arrays) -> bool:
        """Whether much larger inputs came before, whose memory the arena would keep as long as the session lives.

        To give memory back after every run would cost 2 to 8 %.
        """
        size = sum(array.nbytes for array in inputs.values())
        shrunk = size * _SHRINK <= self._largest_bytes
        self._largest_bytes = size if shrunk else max(size, self._largest_bytes)
        return shrunk

    def _run_raw(self, inputs: Arrays, options: onnxruntime.RunOptions | None) -> list[npt.NDArray[Any]]:
        """Run with bfloat16 as its bits, which NumPy has no type for."""
        values = {name: self._value(name, array) for name, array in inputs.items()}
        answers = self._session.run_with_ort_values(self._outputs, values, options)
        return [
            _bits(each) if name in self._raw else each.numpy()
            for name, each in zip(self._outputs, answers, strict=True)
        ]

    def _value(self, name: str, array: npt.NDArray[Any]) -> onnxruntime.OrtValue:
        if name in self._raw:
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _check(execution: Execution) -> None:
    if execution.float_precision != "float32":
        raise RuntimeError(
            f"ONNX Runtime computes float layers in float32, but the variant asks for {execution.float_precision}: "
            "take OpenVINO for it."
        )
    if execution.dynamic_group_size:
        raise RuntimeError(
            "ONNX Runtime has no groups for activations that it quantizes while they pass, but the variant asks for "
            f"{execution.dynamic_group_size}: take OpenVINO for it."
        )


def _options(artifact: bytes, *, threads: int, streams: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # every caller works itself, so that all of them and the pool's threads are as many as were asked for
    options.intra_op_num_threads = max(1, threads - streams + 1)
    options.inter_op_num_threads = 1
    # a plan is kept for every shape that ever came, and saves nothing that can be measured
    options.enable_mem_pattern = False
    entries = {
        # several runners share the machine: a thread that spins takes a core from its neighbour
        "session.intra_op.allow_spinning": "0",
        # by default it quantizes the activations of 4-bit weights to 8 bits, and says so nowhere
        "session.qdq_matmulnbits_accuracy_level": "1",
    }
    if not any(each in artifact for each in _QUANTIZERS):
        # weights alone are quantized: by default it brings them to float32 anew in every run, twice as slow
        entries["session.disable_quant_qdq"] = "1"
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return options


def _check_names(found: list[Any], specs: tuple[TensorSpec, ...]) -> None:
    names = sorted(each.name for each in found)
    for spec in specs:
        if spec.name not in names:
            raise RuntimeError(f"The artifact has no tensor {spec.name!r}, which its record declares; it has {names}.")


def _bits(value: onnxruntime.OrtValue) -> npt.NDArray[Any]:
    shape = value.shape()
    source = (ctypes.c_uint16 * int(np.prod(shape))).from_address(value.data_ptr())
    return np.ctypeslib.as_array(source).reshape(shape).copy()  # `value` frees its memory when it goes
