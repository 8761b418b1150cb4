"""The engines a runner can hold a variant with: what each must offer, and the one table of them."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy.typing as npt

from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import Signature
from app.domain.variants import Engine, Execution, Precision

Arrays = Mapping[str, npt.NDArray[Any]]


class Session(Protocol):
    """An artifact loaded by an engine.

    Attributes:
        float_precision: what the engine itself says it computes float layers in.
        lanes: how many threads may call `infer` at once, each with a lane of its own.
    """

    engine_version: str
    float_precision: Precision
    lanes: int

    def infer(self, inputs: Arrays, /, *, lane: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Run once in a lane; bfloat16 lies as uint16.

        Inputs in C order are read in place, others copied; nothing holds them when the call returns. The answer is
        valid until the lane's next call.

        Raises:
            RuntimeError: the graph does not take these arrays, or failed on them; the lane is as good as before.
        """


class OpenSession(Protocol):
    """Loads an artifact."""

    def __call__(
        self,
        artifact: bytes,
        execution: Execution,
        signature: Signature,
        /,
        *,
        streams: int = 1,
        threads: int,
        pixels: ImagePreprocessing | None = None,
    ) -> Session:
        """Load an artifact so that it runs as `execution` says.

        Args:
            streams: how many lanes the session has; over one is for throughput.
            threads: for all lanes together.
            pixels: makes the one image input take pixels, uint8[n, height, width, channels], instead; the channels
                are red, green and blue, or one of grey.

        Raises:
            RuntimeError: the engine is not installed, cannot read the artifact or cannot run it so.
        """


def _openvino() -> OpenSession:
    from workers.openvino_engine import OpenVinoSession  # noqa: PLC0415  (a runner pays for one engine only)

    return OpenVinoSession


def _onnxruntime() -> OpenSession:
    try:
        from workers.onnxruntime_engine import OnnxRuntimeSession  # noqa: PLC0415  (a runner pays for one engine only)
    except ModuleNotFoundError as error:
        raise RuntimeError("ONNX Runtime is not installed: add the package onnxruntime, or take OpenVINO.") from error
    return OnnxRuntimeSession


ENGINES: dict[Engine, Callable[[], OpenSession]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}
"""Imports an engine; returns what opens its sessions."""
