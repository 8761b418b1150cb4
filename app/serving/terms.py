"""What a runner pool is given and what it gives back: limits, an observer, answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from app.domain.serving import Knobs, Servable

Arrays = Mapping[str, npt.NDArray[Any]]
"""Tensors by name. A bfloat16 tensor is a uint16 array of its bits: NumPy has no such type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """A JPEG or PNG as received; the runner decodes it."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImages:
    """JPEGs or PNGs as received, one a row; the runner decodes them."""

    images: tuple[bytes | memoryview, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Decoded images of the model's own size: uint8 [n, height, width, channels], in RGB or one grey channel.

    What is left of the preprocessing (order of colours, scale, mean, std, layout) is part of the runner's graph.
    """

    data: npt.NDArray[np.uint8]


Inputs = Arrays | EncodedImage | EncodedImages | Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """
    Attributes:
        max_loaded: variants on this machine; the least recently used gives way.
        total_memory_bytes: of all runners together.
        threads: of each runner's engine; 0 takes all cores.
        start_timeout_seconds: from spawn to ready.
        request_timeout_seconds: from `infer` to its answer, loading and waiting included.
        max_batch_size: rows in one request.
        max_queued: requests at once for one variant.
        max_answer_bytes: of all outputs of one request.
        memory_bytes: of one runner; an allocation beyond fails the request that needs it.
        knobs: of a variant for which nobody pinned any.
    """

    max_loaded: int = 8
    total_memory_bytes: int = 2**40
    threads: int = 0
    start_timeout_seconds: float = 60
    request_timeout_seconds: float = 60
    max_batch_size: int = 256
    max_queued: int = 256
    max_answer_bytes: int = 256 * 2**20
    memory_bytes: int = 8 * 2**30
    knobs: Knobs = field(default_factory=Knobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """One request's answer.

    Attributes:
        queue_seconds: from its arrival at the runner until that began.
        compute_seconds: inside the engine.
        rows: how many the engine ran at once.
    """

    outputs: dict[str, npt.NDArray[Any]]
    queue_seconds: float
    compute_seconds: float
    rows: int


class Observer(Protocol):
    """Is told what happens to runners. Called on the event loop: must not block."""

    def restarted(self, variant: Servable) -> None:
        """A runner died and is started again."""

    def retried(self, variant: Servable) -> None:
        """A request is sent again because its runner died."""

    def loaded(self, count: int) -> None:
        """So many runners are ready now."""
