"""What gateways, their host and runners tell each other. Small messages only: tensors lie in shared segments.

The host starts runners and hands each gateway a connection to them; from then on gateway and runner talk directly.
"""

from dataclasses import dataclass
from typing import Literal

from app.domain.serving import Knobs, RunnerStatus, Servable, Tuning
from app.domain.tensors import DType
from app.domain.variants import Precision

ALIGNMENT = 64
"""Every tensor begins at a multiple of this many bytes, so that an engine may use it in place."""

SEGMENT_HEADER_BYTES = ALIGNMENT
"""What every segment begins with. Its first byte is the runner's: 1 once it computes the request, 0 before."""

BOARD_BYTES = 16
"""Of the memory in which a runner shows every gateway how it fares: rows that wait (int64), rows a second (float64)."""


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


# ---- host to runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The first message: hold this artifact.

    Attributes:
        max_batch_size: most rows of several requests that may run together; 1 where neighbours matter.
        tuning: what an earlier runner of this artifact measured on this machine; None to measure.
        max_answer_bytes: of all outputs of one request; a larger answer is refused.
    """

    variant: Servable
    instance: int
    path: str
    knobs: Knobs
    threads: int
    max_batch_size: int
    tuning: Tuning | None
    max_answer_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """Serve one more gateway: its end of a socket pair comes with this message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect:
    """Ask for a `RunnerStatus`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Tell every gateway to send no more, answer what came, and exit once they have closed."""


# ---- runner to host


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The artifact is loaded, warm and tuned; the board's descriptor comes with this message.

    Attributes:
        float_precision: what the engine itself says it computes float layers in.
    """

    engine_version: str
    float_precision: Precision
    load_seconds: float
    tuning: Tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    """The artifact cannot be held; the process exits."""

    message: str


# ---- gateway to runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Map the segment whose descriptor comes with this message; `Infer` then names it by its number."""

    segment: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    """Forget a segment; no request uses it any more."""

    segment: int


Form = Literal["tensors", "pixels", "images"]
"""What a request brings: the model's inputs, uint8 pixels for its one image input, or encoded images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Infer:
    """Answer one request.

    Attributes:
        inputs: of form `images` one uint8 tensor of one axis for every image; of `pixels` one [n, h, w, c].
        outputs_at: from which byte of the segment on the outputs may be written.
        deadline_ns: on the machine's monotonic clock; after it nobody waits for the answer.
        priority: higher ones first; 0 is the usual one.
        alone: run it with no other request at a time, because a runner died while it computed this one among others.
    """

    id: int
    segment: int
    form: Form
    rows: int
    inputs: tuple[Part, ...]
    outputs_at: int
    deadline_ns: int
    priority: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Nobody waits for a request any more: refuse it, unless it runs already."""

    id: int


# ---- runner to gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outputs of one request.

    Attributes:
        overflow_bytes: size of the segment whose descriptor comes with this message, in which the outputs lie
            because they did not fit behind the inputs; 0: they lie in the request's own segment.
        queue_seconds: from its arrival until the engine, or what makes its inputs, began.
        compute_seconds: inside the engine.
        rows: how many the engine ran at once.
    """

    id: int
    outputs: tuple[Part, ...]
    overflow_bytes: int
    queue_seconds: float
    compute_seconds: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One request failed, alone: an `OctetError`'s code and its sentence."""

    id: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """Send nothing more here, and close once everything is answered."""


# ---- gateway to host


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquire:
    """Ask for connections to a variant's runners, loading it first if need be.

    Attributes:
        have: serial numbers of the runners to which the gateway is connected already.
    """

    id: int
    variant: Servable
    have: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Load a variant and answer when all its runners are ready. `knobs`, if given, hold until it is unloaded."""

    id: int
    variant: Servable
    knobs: Knobs | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Unload a variant, and answer when its runners are gone."""

    id: int
    variant: Servable


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """End a runner that has answered nothing for too long."""

    serial: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Ask how every runner fares."""

    id: int


# ---- host to gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """Connections to ready runners: for each a socket and a board, in this order, come with this message.

    Attributes:
        more: whether other runners of the variant are starting.
    """

    id: int
    serials: tuple[int, ...]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """It is as asked."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """It cannot be: an `OctetError`'s code and its sentence."""

    id: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldVariant:
    """A variant that the host keeps, with the process ids of its ready runners."""

    model: str
    version: int
    variant: str
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Every runner that said how it fares, and every variant that the host keeps."""

    id: int
    runners: tuple[RunnerStatus, ...]
    held: tuple[HeldVariant, ...]


ToRunner = Load | Connect | Inspect | Drain | Attach | Detach | Infer | Cancel
FromRunner = Ready | LoadFailed | RunnerStatus | Answer | Refusal | Closing
ToHost = Acquire | Prepare | Release | Kill | Survey
FromHost = Granted | Done | Denied | Overview
Message = ToRunner | FromRunner | ToHost | FromHost
