"""Serving: how a variant's runners should work, what they measured of themselves, and how they fare."""

from dataclasses import dataclass
from typing import Literal, Self, get_args

from app.domain.errors import RequestInvalid
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import Signature
from app.domain.variants import Artifact, Engine, Execution, Variant

Mode = Literal["auto", "latency", "throughput"]
EngineChoice = Literal["recorded", "auto", "openvino", "onnxruntime"]

USUAL_LEVEL = 10
"""The priority level that a request of level 0 has, in the protocol's words: 1 goes first, higher numbers later."""

MOST_INSTANCES = 16
MOST_STREAMS = 256
LONGEST_QUEUE_DELAY_MS = 1000.0


def priority_of(level: int) -> int:
    """Return the priority (higher goes first, 0 is the usual one) of a level as the protocol counts them."""
    return USUAL_LEVEL - level if level else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What a user pins of a variant's runners; the runner measures and chooses the rest.

    Attributes:
        instances: runner processes side by side.
        mode: `latency` runs one request at a time with all threads, `throughput` several streams side by side;
            `auto` follows the load.
        engine: `recorded` is the one with which the variant's report was measured; `auto` measures every engine when
            the variant is loaded and takes the fastest whose answers agree with the recorded one's.
        streams: of the throughput mode; None for the best measured.
        threads: of each runner's engine; None for the service's setting.
        max_batch_size: most rows of several requests that run together; 1 never joins requests, None for the best
            measured. A variant that is not batch-invariant never joins any.
        max_queue_delay_ms: how long a request may wait for others to join.
    """

    instances: int = 1
    mode: Mode = "auto"
    engine: EngineChoice = "recorded"
    streams: int | None = None
    threads: int | None = None
    max_batch_size: int | None = None
    max_queue_delay_ms: float = 0.0

    def __post_init__(self) -> None:
        _check("instances", self.instances, 1, MOST_INSTANCES)
        _check("streams", self.streams, 1, MOST_STREAMS)
        _check("threads", self.threads, 1, MOST_STREAMS)
        _check("max_batch_size", self.max_batch_size, 1, 2**16)
        _check("max_queue_delay_ms", self.max_queue_delay_ms, 0, LONGEST_QUEUE_DELAY_MS)
        _check_choice("mode", self.mode, get_args(Mode))
        _check_choice("engine", self.engine, get_args(EngineChoice))


@dataclass(frozen=True, slots=True, kw_only=True)
class Servable:
    """What serving needs to know of a variant: all of it but how it was made.

    Attributes:
        preprocessing: how images and pixels become the one input; None for a model without.
        max_batch_size: as in `Variant`.
    """

    model: str
    version: int
    name: str
    artifact: Artifact
    execution: Execution
    signature: Signature
    preprocessing: ImagePreprocessing | None
    max_batch_size: int | None

    @classmethod
    def of(cls, variant: Variant, preprocessing: ImagePreprocessing | None) -> Self:
        """Take from a variant's record what serving needs."""
        return cls(
            model=variant.model,
            version=variant.version,
            name=variant.name,
            artifact=variant.artifact,
            execution=variant.execution,
            signature=variant.signature,
            preprocessing=preprocessing,
            max_batch_size=variant.max_batch_size,
        )

    @property
    def key(self) -> tuple[str, int, str]:
        """What names it on a machine."""
        return self.model, self.version, self.name

    @property
    def title(self) -> str:
        """What names it to a reader."""
        return f"{self.model}:{self.version}@{self.name}"


def _check(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise RequestInvalid(f"{name} is {value}: take {least:g} to {most:g}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RequestInvalid(f"{name} is {str(value)[:40]!r}: take {', '.join(choices[:-1])} or {choices[-1]}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One setting as the runner measured it when it loaded.

    Attributes:
        streams: lanes for requests side by side, each with its share of `threads`.
        busy: how many of them computed at once.
        batch: rows of each request.
        p50_seconds: until one of them was answered.
        rows_per_second: of all together.
    """

    streams: int
    threads: int
    busy: int
    batch: int
    p50_seconds: float
    rows_per_second: float
    engine: Engine = "openvino"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What a runner measured and chose: one setting when few requests wait, another when many do.

    Attributes:
        curve: every setting that was measured; empty where all was pinned or nothing could be measured.
        latency: for a request that is alone.
        throughput: for requests that queue; the same where nothing was faster.
    """

    curve: tuple[CurvePoint, ...]
    latency: CurvePoint
    throughput: CurvePoint

    @property
    def engine(self) -> Engine:
        """What runs the artifact, in both settings."""
        return self.latency.engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How many, and how long in all."""

    count: int = 0
    nanoseconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatistics:
    """Runs of the engine with so many rows."""

    rows: int
    runs: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStatus:
    """One runner as it sees itself.

    Attributes:
        instance: its number among the variant's runners.
        in_flight: requests that it holds, waiting or computed.
        queued_rows: rows that wait.
        last_inference_ns: when it last answered, on the machine's monotonic clock; 0 for never.
        refused: requests by why they got no answer: `deadline`, `cancelled`, `failed`.
        mode: in which it last ran.
    """

    model: str
    version: int
    variant: str
    instance: int
    pid: int
    engine: str
    load_seconds: float
    pss_bytes: int
    peak_bytes: int
    in_flight: int
    queued_rows: int
    last_inference_ns: int
    rows: int
    queue: Timing
    input: Timing
    compute: Timing
    output: Timing
    batches: tuple[BatchStatistics, ...]
    refused: dict[str, int]
    mode: Literal["latency", "throughput"]
    tuning: Tuning
    knobs: Knobs
