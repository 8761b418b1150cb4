"""What is measured, written down as it comes: a run that is killed keeps what it has, and the next one goes on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from app.domain.intervals import Pairs
from benchmarks.qat.arithmetic import Spread

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One artifact on the test rows.

    Attributes:
        pairs: right answers beside float32's.
        agreement: share of rows answered as float32 does.
        start_seconds: of making what training begins from; of making the artifact itself where nothing trains.
        seconds: of the stage that trains.
        trained: what the stage says of it; None where nothing trains.
    """

    pairs: Pairs
    agreement: float
    start_seconds: float
    seconds: float = 0.0
    trained: "TrainedFacts | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedFacts:
    """
    Attributes:
        start: the summary of the start that was taken.
        checked, checked_same: held-out rows, and how many of them the module answered as the engine did.
        module_same: share of the test rows that the fake-quantized module answers as the engine does.
    """

    start: str
    steps: int
    best_step: int
    ended: str
    checked: int
    checked_same: int
    module_same: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How much longer a step takes than the float graph's, by what is trained: ratios taken one after the other."""

    float_seconds: float
    ratios: dict[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crewed:
    """One training of a crew.

    Attributes:
        step_seconds: training's seconds over its steps.
        sent_bytes, plain_bytes: of a step's gradients, by one process; None for one by itself.
        apart: largest difference of a trained number after the last step from that of one process.
        equal: share of the artifact's stored integers that are those of one process.
        same: share of the test rows that the artifact answers as that of one process does.
    """

    pairs: Pairs
    agreement: float
    step_seconds: float
    best_step: int
    sent_bytes: int | None
    plain_bytes: int | None
    apart: float
    equal: float
    same: float


class Journal:
    """Records by name, in a JSON file if there is one.

    A record is taken again only if everything that was asked for then is asked for now.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path and path.exists() else {}

    def get(self, name: str, asked: Mapping[str, object], kind: type[Record]) -> Record | None:
        """Return what was measured, if it was."""
        entry = self._kept.get(name)
        if entry is None or entry["asked"] != to_jsonable_python(asked):
            return None
        return TypeAdapter(kind).validate_python(entry["found"])

    def keep(self, name: str, asked: Mapping[str, object], found: object) -> None:
        """Write a record down."""
        self._kept[name] = {"asked": to_jsonable_python(asked), "found": to_jsonable_python(found)}
        if self._path is None:
            return
        half = self._path.with_suffix(".half")
        half.write_text(json.dumps(self._kept, indent=1))
        half.replace(self._path)

    def taken(
        self, name: str, asked: Mapping[str, object], kind: type[Record], measure: Callable[[], Record]
    ) -> Record:
        """Return what was measured, or measure it and write it down."""
        found = self.get(name, asked, kind)
        if found is None:
            found = measure()
            self.keep(name, asked, found)
        return found


def asked_of(recipe: object, **more: object) -> dict[str, object]:
    """Return all that a record depends on."""
    return {"recipe": asdict(recipe), **more}  # type: ignore[call-overload]
