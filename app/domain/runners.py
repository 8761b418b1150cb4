"""What a gateway and a runner tell each other. Small messages only: tensors lie in shared segments, never in here."""

from dataclasses import dataclass
from typing import Literal

from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import DType, Signature
from app.domain.variants import Execution, Precision

ALIGNMENT = 64
"""Every tensor begins at a multiple of this many bytes, so that an engine may use it in place."""


def aligned(offset: int) -> int:
    """Return the first multiple of `ALIGNMENT` at or after `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Where a tensor lies in a segment: C order, from byte `offset` on. bfloat16 takes two bytes an element."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """An encoded image at the beginning of a segment, and how it becomes the model's one input."""

    size_bytes: int
    preprocessing: ImagePreprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The first message: hold this artifact.

    Attributes:
        threads: for the engine; 0 takes every core the process may use.
        max_answer_bytes: of all outputs of one request; a larger answer is refused.
    """

    kind: Literal["load"] = "load"
    path: str
    sha256: str
    execution: Execution
    signature: Signature
    threads: int
    max_answer_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Map the segment whose descriptor comes with this message; `Infer` then names it by its number."""

    kind: Literal["attach"] = "attach"
    segment: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    """Forget a segment; no request uses it any more."""

    kind: Literal["detach"] = "detach"
    segment: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Infer:
    """Answer one request.

    Attributes:
        inputs: empty when `image` is given.
        outputs_at: from which byte of the segment on the outputs may be written.
        deadline_ns: on the machine's monotonic clock; after it nobody waits for the answer.
    """

    kind: Literal["infer"] = "infer"
    id: int
    segment: int
    rows: int
    inputs: tuple[Part, ...]
    image: ImagePart | None
    outputs_at: int
    deadline_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureMemory:
    """Ask for a `MemoryUse`."""

    kind: Literal["measure_memory"] = "measure_memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Answer what came before, then exit."""

    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The artifact is loaded and has answered once.

    Attributes:
        float_precision: what the engine itself says it computes float layers in.
    """

    kind: Literal["ready"] = "ready"
    engine_version: str
    float_precision: Precision
    load_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    """The artifact cannot be held; the process exits."""

    kind: Literal["load_failed"] = "load_failed"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outputs of one request.

    Attributes:
        overflow_bytes: size of the segment whose descriptor comes with this message, in which the outputs lie
            because they did not fit behind the inputs; 0: they lie in the request's own segment.
        started_ns: when the runner took up the request, on the machine's monotonic clock.
        compute_seconds: inside the engine.
        rows: how many the engine ran at once.
    """

    kind: Literal["answer"] = "answer"
    id: int
    outputs: tuple[Part, ...]
    overflow_bytes: int
    started_ns: int
    compute_seconds: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One request failed, alone: an `OctetError`'s code and its sentence."""

    kind: Literal["refusal"] = "refusal"
    id: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Memory of the runner's process: proportional set size, and the resident set's high-water mark."""

    kind: Literal["memory_use"] = "memory_use"
    pss_bytes: int
    peak_bytes: int


ToRunner = Load | Attach | Detach | Infer | MeasureMemory | Stop
FromRunner = Ready | LoadFailed | Answer | Refusal | MemoryUse
