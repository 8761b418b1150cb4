"""What the stages of training are told, and what they answer."""

from dataclasses import dataclass
from typing import Final, Literal, Protocol

from app.domain.recipes import Qat
from app.domain.tensors import Signature
from app.domain.training import TrainingOutcome, TrainingProgress
from workers.stage_records.common import RowSource, check_libraries

CHECKPOINT_OUTPUT: Final = "out/checkpoint.safetensors"
"""Replaced by renaming whenever training says so: whole at any time, and whoever holds the old one open keeps it."""

STOP_INPUT: Final = "in/stop"
"""When this file appears, training ends with what it has."""


class TrainingTeller(Protocol):
    """What a stage that trains is given for `Progress`: it has more to tell."""

    def __call__(self, share: float, step: str) -> None: ...

    def tell(self, progress: TrainingProgress) -> None:
        """Say where training stands."""

    def checkpoint(self, step: int) -> None:
        """Say that `out/checkpoint.safetensors` holds the state after this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A post-training quantization to begin from: its recipe's `summary` and its artifact."""

    recipe: str
    artifact: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Another model that answers the training rows: `name:version` and its float32 artifact."""

    name: str
    artifact: str
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """Train a static quantization from the best of the starts, and write `out/variant.onnx`.

    Attributes:
        float32: the float32 artifact: the teacher where no other is named.
        training, held_out: rows that train, and rows that choose the step.
        classes: names of the classes, where the labels are classes and have names.
        values: the answers are real numbers, and no classes even where they look like it.
        checkpoint: the state to go on from; None begins anew.
        seconds: training ends in time for this; a forecast beyond it fails at once.
        began_at: when the seconds began to count, in seconds since 1970: a process that is started again has no more,
            nor has one on another machine, whose other clocks began elsewhere. The sandbox sets it; 0 is now.
        memory_bytes: a forecast beyond it fails at once.
    """

    float32: str
    starts: tuple[Start, ...]
    signature: Signature
    recipe: Qat
    training: RowSource
    held_out: RowSource
    classes: tuple[str, ...] = ()
    values: bool = False
    teacher: Teacher | None = None
    checkpoint: str | None = None
    seconds: float
    began_at: float = 0.0
    memory_bytes: int

    @property
    def processes(self) -> int:
        """How many processes do it together."""
        return self.recipe.processes

    @property
    def state_seconds(self) -> float:
        """How often `out/checkpoint.safetensors` may be written anew."""
        return self.recipe.checkpoint_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """
    Attributes:
        start: the start that was taken, by its place in the spec.
    """

    artifact: Literal["out/variant.onnx"]
    start: int
    outcome: TrainingOutcome
    libraries: dict[str, str]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_libraries(self.libraries)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapSpec:
    """Look for evaluation rows that equal one that trains, by what is in them."""

    training: RowSource
    evaluation: RowSource


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapResult:
    """
    Attributes:
        rows: the first of them, ascending.
    """

    count: int
    rows: tuple[int, ...]
