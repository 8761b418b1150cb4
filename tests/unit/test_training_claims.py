"""What a process says of its training is a claim: numbers that nobody could measure are no record."""

import json
from dataclasses import asdict, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import StageCrashed
from app.domain.training import MOST_RESUMED, StartScore, TrainingForecast, TrainingPoint, WireUse
from tests.trained import PROGRESS, training
from workers.claims import read_result

OUTCOME = training().outcome
POINT = TrainingPoint(step=0, loss=None, learning_rate=0.0, score=1.0, agreement=0.5)

OUTCOMES: list[dict[str, Any]] = [
    {"steps_done": 401},
    {"best_step": 401},
    {"best_step": -1},
    {"steps": 10**13, "steps_done": 0, "best_step": 0, "points": [], "resumed_at": []},
    {"steps_done": 10**400},
    {"resumed_at": [401]},
    {"resumed_at": [-1]},
    {"resumed_at": list(range(MOST_RESUMED + 1))},
    {"checked_same": 201},
    {"processes": 0},
    {"parameters": -1},
    {"seconds": inf},
    {"rows_per_second": nan},
    {"points": [{**asdict(POINT), "step": 401}]},
    {"points": [{**asdict(POINT), "loss": 1.7e308}]},
    {"points": [{**asdict(POINT), "learning_rate": 5e-324}]},
    {"starts": [{"recipe": "r", "score": nan, "agreement": None}]},
]


def result_of(scratch: Path, **changed: Any) -> Any:
    outcome = {**json.loads(json.dumps(asdict(OUTCOME))), **changed}
    claim = {"artifact": "out/variant.onnx", "start": 0, "outcome": outcome, "libraries": {}}
    (scratch / "result.json").write_text(json.dumps(claim))
    return read_result("train", scratch)


def test_an_honest_result_is_believed(tmp_path: Path) -> None:
    assert result_of(tmp_path).outcome == OUTCOME


@pytest.mark.parametrize("changed", OUTCOMES)
def test_a_result_that_cannot_be_is_no_result(changed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StageCrashed, match="is not its record"):
        result_of(tmp_path, **changed)


@pytest.mark.parametrize("wrong", [{"agreement": 1.01}, {"agreement": nan}, {"score": inf}, {"learning_rate": -1.0}])
def test_a_point_has_numbers_that_can_be_drawn(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="A training told"):
        replace(POINT, **wrong)


def test_what_is_measured_is_not_below_nothing() -> None:
    with pytest.raises(ValueError, match="below 0"):
        replace(PROGRESS, seconds_left=-1.0)
    with pytest.raises(ValueError, match="cannot be"):
        WireUse(hook="int8", plain_bytes=-1, sent_bytes=0)
    with pytest.raises(ValueError, match="below 0"):
        TrainingForecast(seconds=-1.0, memory_bytes=1, actual_seconds=1.0, actual_memory_bytes=1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        StartScore(recipe="r", score=1.0, agreement=2.0)
