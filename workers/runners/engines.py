"""The engines a runner can hold a variant with: what each must offer, and the one table of them."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy.typing as npt

from app.domain.tensors import Signature
from app.domain.variants import Engine, Execution, Precision
from workers.openvino_engine import OpenVinoSession

Arrays = Mapping[str, npt.NDArray[Any]]


class Session(Protocol):
    """An artifact loaded by an engine. Used by one thread.

    Attributes:
        float_precision: what the engine itself says it computes float layers in.
    """

    engine_version: str
    float_precision: Precision

    def infer(self, inputs: Arrays, /) -> dict[str, npt.NDArray[Any]]:
        """Run once. Arrays lie in C order, bfloat16 as uint16; the answer is valid until the next call."""


OpenSession = Callable[[bytes, Execution, Signature, int], Session]
"""Takes the artifact's bytes, how to run it, its signature, and a number of threads."""

ENGINES: dict[Engine, OpenSession] = {
    "openvino": OpenVinoSession,
}
