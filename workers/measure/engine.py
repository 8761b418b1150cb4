"""The engine that serves, as the measurements use it: every form runs as the runner would run it."""

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from app.domain.errors import PrecisionUnavailable, ToolchainFailed
from app.domain.tensors import DType, Signature
from workers.openvino_engine import OpenVinoSession, has_bfloat16
from workers.stage_records.measuring import Form


def threads() -> int:
    """How many cores this process may use: what the engine is given."""
    return len(os.sched_getaffinity(0))


class Session:
    """One compiled form with one infer request. Open it with `open`."""

    def __init__(self, engine: OpenVinoSession, *, name: str, signature: Signature) -> None:
        self.compiled = engine.compiled
        self.name = name
        self._engine = engine
        self._signature = signature

    @classmethod
    def open(cls, form: Form, signature: Signature, *, scratch: Path, core: ov.Core, profiled: bool = False) -> Self:
        """Compile one form.

        Args:
            profiled: whether the engine times every layer, which slows the whole.

        Raises:
            PrecisionUnavailable: this CPU has no kernels for the form's float precision.
            ToolchainFailed: OpenVINO cannot compile it.
        """
        if not runs_here(form, core):
            raise PrecisionUnavailable(
                f"This CPU has no bfloat16 instructions, which {form.name!r} runs in: use int8, or another worker."
            )
        artifact = (scratch / form.artifact).read_bytes()
        try:
            engine = OpenVinoSession(artifact, form.execution, signature, threads(), core=core, profiled=profiled)
        except RuntimeError as error:
            raise ToolchainFailed(
                f"OpenVINO cannot compile {form.name} ({_short(error)}): export the model with other operators."
            ) from error
        return cls(engine, name=form.name, signature=signature)

    def run(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Answer one batch: the outputs in the signature's order, copied out of the engine, bfloat16 as float32.

        Raises:
            ToolchainFailed: OpenVINO cannot run it on these inputs.
        """
        answer = self.infer(inputs)
        return [_copied(answer[spec.name], spec.dtype) for spec in self._signature.outputs]

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once and leave the answer in the engine, where it is valid until the next run: what is timed."""
        try:
            return self._engine.infer({name: _storage(array) for name, array in inputs.items()})
        except RuntimeError as error:
            raise ToolchainFailed(
                f"OpenVINO cannot run {self.name} ({_short(error)}): check that its inputs' sizes fit each other."
            ) from error


def runs_here(form: Form, core: ov.Core) -> bool:
    """Whether this CPU has instructions for the form's float precision."""
    return form.execution.float_precision != "bfloat16" or has_bfloat16(core)


def _storage(array: NDArray[Any]) -> NDArray[Any]:
    plain = np.require(array, requirements=["C", "W"])  # the engine reads in place, and takes only what it could write
    return plain.view(np.uint16) if plain.dtype.name == DType.BFLOAT16 else plain


def _copied(data: NDArray[Any], dtype: DType) -> NDArray[Any]:
    if dtype is DType.BFLOAT16:
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.copy()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[-300:]
