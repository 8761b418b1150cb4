"""The engine that serves, as the measurements use it: every form compiled exactly as its `Execution` says."""

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from app.domain.errors import PrecisionUnavailable, ToolchainFailed
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution, Precision
from workers.stages import Form

_HINTS: dict[Precision, ov.Type] = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}


def threads() -> int:
    """How many cores this process may use: what the engine is given."""
    return len(os.sched_getaffinity(0))


class Session:
    """One compiled form with one infer request. Open it with `open`."""

    def __init__(self, compiled: ov.CompiledModel, *, name: str, signature: Signature) -> None:
        self.compiled = compiled
        self.name = name
        self._signature = signature
        self._request = compiled.create_infer_request()

    @classmethod
    def open(cls, form: Form, signature: Signature, *, scratch: Path, core: ov.Core, profiled: bool = False) -> Self:
        """Compile one form.

        Args:
            profiled: whether the engine times every layer, which slows the whole.

        Raises:
            PrecisionUnavailable: this CPU has no kernels for the form's float precision.
            ToolchainFailed: OpenVINO cannot compile it.
        """
        _check_cpu(core, form)
        try:
            compiled = core.compile_model(scratch / form.artifact, "CPU", _options(form.execution, profiled=profiled))
        except RuntimeError as error:
            raise ToolchainFailed(f"OpenVINO cannot compile {form.name} ({_short(error)}).") from error
        return cls(compiled, name=form.name, signature=signature)

    def run(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Answer one batch: the outputs in the signature's order, copied out of the engine.

        Raises:
            ToolchainFailed: OpenVINO cannot run it on these inputs.
        """
        self.infer(inputs)
        return [self._output(spec) for spec in self._signature.outputs]

    def infer(self, inputs: dict[str, NDArray[Any]]) -> None:
        """Run once and leave the answer in the engine: what is timed."""
        try:
            self._request.infer({name: _tensor(array) for name, array in inputs.items()}, share_inputs=True)
        except RuntimeError as error:
            raise ToolchainFailed(f"OpenVINO cannot run {self.name} ({_short(error)}).") from error

    def _output(self, spec: TensorSpec) -> NDArray[Any]:
        data: NDArray[Any] = self._request.get_tensor(spec.name).data
        if spec.dtype is DType.BFLOAT16:
            return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return data.copy()


def _tensor(array: NDArray[Any]) -> NDArray[Any] | ov.Tensor:
    if array.dtype.name == DType.BFLOAT16:
        return ov.Tensor(array.view(np.uint16), ov.Shape(array.shape), ov.Type.bf16)
    return array


def _options(execution: Execution, *, profiled: bool) -> dict[str, Any]:
    return {
        # without it OpenVINO runs float layers in bfloat16 where the CPU can, and float32 would be none
        "INFERENCE_PRECISION_HINT": _HINTS[execution.float_precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads(),
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": profiled,
    }


def _check_cpu(core: ov.Core, form: Form) -> None:
    wants_bfloat16 = form.execution.float_precision == "bfloat16"
    if wants_bfloat16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise PrecisionUnavailable(f"This CPU has no bfloat16 instructions, which {form.name} runs in.")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[-300:]
