"""OpenVINO as the engine: compiles exactly what a variant's record says, for the runner and for what measures alike."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as ops

from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution, Precision
from workers.openvino_shapes import shape_check
from workers.pixels import PixelInput

# What lies so is read in place, wherever it begins: no address was seen to give another answer or to take longer.
_IN_PLACE: Final = ("C", "A", "W")
_HINTS: dict[Precision, ov.Type] = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}


class OpenVinoSession:
    """One compiled graph with one infer request for every lane.

    Args:
        artifact: the file's bytes.
        threads: for all lanes together.
        streams: how many lanes there are, which share the threads and the weights.
        pixels: what turns pixels into the input; the graph then takes uint8[n, height, width, channels] instead.
        core: to be shared between sessions of one process; one of its own by default.
        profiled: whether the engine times every layer, which slows the whole.

    Raises:
        RuntimeError: OpenVINO cannot read or compile the artifact, this CPU cannot run what `execution` says, or the
            graph takes no pixels.
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
        core: ov.Core | None = None,
        profiled: bool = False,
    ) -> None:
        core = core or ov.Core()
        model = core.read_model(artifact)
        if pixels is not None:
            _take_pixels(model, PixelInput.of(signature, pixels))
        self._shapes = shape_check(model, signature, pixels=pixels is not None)
        options = _options(execution, threads=threads, streams=streams, profiled=profiled)
        self.compiled: ov.CompiledModel = core.compile_model(model, "CPU", options)
        self.engine_version: str = ov.get_version()
        self.float_precision = _executed_precision(self.compiled)
        self.lanes = streams
        self._threads = threads
        self._requests = [self.compiled.create_infer_request() for _ in range(streams)]
        self._inputs = {spec.name: _port(self.compiled.inputs, spec) for spec in signature.inputs}
        self._outputs = {spec.name: _port(self.compiled.outputs, spec) for spec in signature.outputs}
        self._raw = {
            name for name, port in (*self._inputs.items(), *self._outputs.items()) if port.element_type == ov.Type.bf16
        }

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]], /, *, lane: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Run once in a lane, reading in place what lies in C order and may be written, copying the rest.

        The answer's arrays are valid until the lane's next call.

        Raises:
            RuntimeError: the graph does not take these arrays, or failed on them.
        """
        if not 0 <= lane < self.lanes:
            raise RuntimeError(f"Lane {lane} was asked of a session with {self.lanes}.")
        # The request would read what is not named where it lay at the last call, and it keeps no array alive.
        if inputs.keys() != self._inputs.keys():
            raise RuntimeError(f"The graph takes {sorted(self._inputs)}, but got {sorted(inputs)}.")
        request, held = self._requests[lane], {name: np.require(each, None, _IN_PLACE) for name, each in inputs.items()}
        if self._shapes is not None:
            self._shapes.check(held)
        for name, array in held.items():
            request.set_tensor(self._inputs[name], self._tensor(name, array))
        self._run(request)
        return {name: self._array(name, request.get_tensor(port)) for name, port in self._outputs.items()}

    def _run(self, request: ov.InferRequest) -> None:
        """Run in the calling thread, which saves a tenth of a small graph's time, unless the engine has one thread.

        Then OpenVINO 2026.4 swallows a failure in infer() and leaves the last answer in place.
        """
        if self._threads > 1:
            request.infer()
        else:
            request.start_async()
            request.wait()

    def _tensor(self, name: str, array: npt.NDArray[Any]) -> ov.Tensor:
        if name in self._raw:
            return ov.Tensor(array, ov.Shape(list(array.shape)), ov.Type.bf16)
        return ov.Tensor(array, shared_memory=True)

    def _array(self, name: str, tensor: ov.Tensor) -> npt.NDArray[Any]:
        data: npt.NDArray[Any] = tensor.data
        return data.view(np.uint16) if name in self._raw else data


def has_bfloat16(core: ov.Core) -> bool:
    """Whether this CPU computes in bfloat16, as the engine itself says: on ARM it may not although the CPU could."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _options(execution: Execution, *, threads: int, streams: int, profiled: bool) -> dict[str, Any]:
    return {
        # without it OpenVINO runs float layers in bfloat16 where the CPU can, and float32 would be none
        "INFERENCE_PRECISION_HINT": _HINTS[execution.float_precision],
        # without it OpenVINO quantizes activations in groups of 32 wherever weights are integers, and says so nowhere
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": execution.dynamic_group_size,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": threads,
        # several runners share the machine: pinned, all of them would sit on the same first cores
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": profiled,
    }


def _executed_precision(compiled: ov.CompiledModel) -> Precision:
    hint = compiled.get_property("INFERENCE_PRECISION_HINT")
    for precision, kind in _HINTS.items():
        if hint == kind:
            return precision
    raise RuntimeError(f"OpenVINO computes in {hint}, which no variant asks for.")


def _port(ports: list[ov.ConstOutput], spec: TensorSpec) -> ov.ConstOutput:
    for port in ports:
        if spec.name in port.get_names():
            return port
    names = sorted(name for port in ports for name in port.get_names())
    raise RuntimeError(f"The artifact has no tensor {spec.name!r}, which its record declares; it has {names}.")


def _take_pixels(model: ov.Model, plan: PixelInput) -> None:
    """Put what turns pixels into the input before the graph's input, in the order of `pixels.normalized`."""
    port = _port(model.inputs, plan.spec)
    entry, names = port.get_node(), port.get_names()
    pixels = ops.parameter(ov.PartialShape([-1 if size is None else size for size in plan.shape]), ov.Type.u8)
    row = _row(pixels, plan, kind=port.get_element_type())
    for reader in port.get_target_inputs():
        reader.replace_source_output(row.output(0))
    pixels.output(0).set_names({plan.spec.name})
    row.output(0).set_names(names - {plan.spec.name})
    model.add_parameters([pixels])
    model.remove_parameter(entry)
    model.validate_nodes_and_infer_types()


def _row(pixels: ov.Node, plan: PixelInput, *, kind: ov.Type) -> ov.Node:
    # The axes first, while they are bytes: OpenVINO then reads them in another order, which costs nothing.
    row, axes = pixels, plan.order
    if len(axes) < len(plan.shape):
        row, axes = ops.squeeze(row, np.array([0])), tuple(axis - 1 for axis in axes)
    row = ops.transpose(row, np.array(axes))
    channel = plan.order.index(len(plan.shape) - 1)
    if plan.preprocessing.colour == "bgr":
        row = ops.gather(row, np.array([2, 1, 0]), np.array(channel))
    row = ops.multiply(ops.convert(row, ov.Type.f32), np.float32(plan.preprocessing.scale))
    along = [-1 if axis == channel else 1 for axis in range(len(axes))]
    row = ops.subtract(row, np.array(plan.preprocessing.mean, np.float32).reshape(along))
    row = ops.divide(row, np.array(plan.preprocessing.std, np.float32).reshape(along))
    return _converted(row, plan.spec.dtype, kind=kind)


def _converted(row: ov.Node, dtype: DType, *, kind: ov.Type) -> ov.Node:
    """Convert as `pixels.cast` does."""
    if kind.is_integral_number():
        limits = np.iinfo(str(dtype))
        row = ops.clamp(ops.round(row, "half_to_even"), float(limits.min), float(limits.max))
    elif dtype is DType.BOOL:
        return ops.not_equal(row, np.float32(0))
    return ops.convert(row, kind)
