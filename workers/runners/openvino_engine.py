"""OpenVINO as a runner's engine: compiles exactly what the variant's record says, so that what was measured runs."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution, Precision

# Without this module OpenVINO falls back to a stub of its own: nothing can be sent.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402  (only after the line above)

_HINTS: dict[Precision, ov.Type] = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}


class OpenVinoSession:
    """One compiled graph with one infer request.

    Raises:
        RuntimeError: OpenVINO cannot read or compile the artifact, or this CPU cannot run what `execution` says.
    """

    def __init__(self, artifact: bytes, execution: Execution, signature: Signature, threads: int) -> None:
        core = ov.Core()
        compiled = core.compile_model(core.read_model(artifact), "CPU", _options(execution, threads))
        self.engine_version: str = ov.get_version()
        self.float_precision = _executed_precision(compiled)
        self._request = compiled.create_infer_request()
        self._inputs = {spec.name: _port(compiled.inputs, spec) for spec in signature.inputs}
        self._outputs = {spec.name: _port(compiled.outputs, spec) for spec in signature.outputs}
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


def _options(execution: Execution, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[execution.float_precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # several runners share the machine: pinned, all of them would sit on the same first cores
        "ENABLE_CPU_PINNING": False,
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
