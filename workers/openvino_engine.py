"""OpenVINO as the engine: compiles exactly what a variant's record says, for the runner and for what measures alike."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution, Precision

_HINTS: dict[Precision, ov.Type] = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}


class OpenVinoSession:
    """One compiled graph with one infer request.

    Args:
        artifact: the file's bytes.
        core: to be shared between sessions of one process; one of its own by default.
        profiled: whether the engine times every layer, which slows the whole.

    Raises:
        RuntimeError: OpenVINO cannot read or compile the artifact, or this CPU cannot run what `execution` says.
    """

    def __init__(
        self,
        artifact: bytes,
        execution: Execution,
        signature: Signature,
        threads: int,
        *,
        core: ov.Core | None = None,
        profiled: bool = False,
    ) -> None:
        core = core or ov.Core()
        options = _options(execution, threads=threads, profiled=profiled)
        self.compiled: ov.CompiledModel = core.compile_model(core.read_model(artifact), "CPU", options)
        self.engine_version: str = ov.get_version()
        self.float_precision = _executed_precision(self.compiled)
        self._request = self.compiled.create_infer_request()
        self._inputs = {spec.name: _port(self.compiled.inputs, spec) for spec in signature.inputs}
        self._outputs = {spec.name: _port(self.compiled.outputs, spec) for spec in signature.outputs}
        self._raw = {spec.name for spec in (*signature.inputs, *signature.outputs) if spec.dtype is DType.BFLOAT16}

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run once, reading the inputs in place. The answer's arrays are valid until the next call."""
        for name, array in inputs.items():
            self._request.set_tensor(self._inputs[name], self._tensor(name, array))
        # Not infer(): with one thread OpenVINO 2026.4 swallows a failure there and leaves the last answer in place.
        self._request.start_async()
        self._request.wait()
        return {name: self._array(name, self._request.get_tensor(port)) for name, port in self._outputs.items()}

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


def _options(execution: Execution, *, threads: int, profiled: bool) -> dict[str, Any]:
    return {
        # without it OpenVINO runs float layers in bfloat16 where the CPU can, and float32 would be none
        "INFERENCE_PRECISION_HINT": _HINTS[execution.float_precision],
        # without it OpenVINO quantizes activations in groups of 32 wherever weights are integers, and says so nowhere
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": execution.dynamic_group_size,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
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
