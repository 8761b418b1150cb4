"""What a runner pool is given and what it gives back: limits, an observer, answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from app.domain.variants import Variant

Arrays = Mapping[str, npt.NDArray[Any]]
"""Tensors by name. A bfloat16 tensor is a uint16 array of its bits: NumPy has no such type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """A JPEG or PNG as received; the runner decodes it."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """
    Attributes:
        max_loaded: runners of this pool; the least recently used gives way.
        threads: of each runner's engine; 0 takes all cores.
        start_timeout_seconds: from spawn to ready.
        request_timeout_seconds: from `infer` to its answer, loading and waiting included.
        max_batch_size: rows in one request.
        max_queued: requests at once for one variant.
        max_answer_bytes: of all outputs of one request.
        memory_bytes: of one runner; an allocation beyond fails the request that needs it.
    """

    max_loaded: int = 8
    threads: int = 0
    start_timeout_seconds: float = 60
    request_timeout_seconds: float = 60
    max_batch_size: int = 256
    max_queued: int = 256
    max_answer_bytes: int = 256 * 2**20
    memory_bytes: int = 8 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """One request's answer.

    Attributes:
        queue_seconds: from sent to the runner until it began.
        compute_seconds: inside the engine.
        rows: how many the engine ran at once.
    """

    outputs: dict[str, npt.NDArray[Any]]
    queue_seconds: float
    compute_seconds: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVariant:
    """A variant that the pool keeps.

    Attributes:
        pid: of its runner; None while that one starts, starts again, or failed to.
        in_flight: requests that wait for it or for its answer.
    """

    variant: Variant
    pid: int | None
    in_flight: int

    @property
    def ready(self) -> bool:
        return self.pid is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerMemory:
    """Memory of one runner, as it read it from its own process."""

    variant: Variant
    pss_bytes: int
    peak_bytes: int


class Observer(Protocol):
    """Is told what happens to runners. Called on the event loop: must not block."""

    def restarted(self, variant: Variant) -> None:
        """A runner died and is started again."""

    def retried(self, variant: Variant) -> None:
        """A request is sent again because its runner died."""

    def loaded(self, count: int) -> None:
        """So many runners are ready now."""
