"""The steps of a job that run in the sandbox: where each is, what it is told and what it answers.

A stage is a function `run(spec, scratch, progress) -> result` in the module that `STAGES` names. Paths in a spec or a
result are relative to the scratch folder. What a stage answers is a claim by a process that may have run hostile
code: the job checks it before it uses it. No library is imported here.
"""

from dataclasses import dataclass
from typing import Any

from workers.stage_records.importing import (
    ConvertResult,
    ConvertSpec,
    DescribeResult,
    DescribeSpec,
    VerifyResult,
    VerifySpec,
)
from workers.stage_records.making import AcceptResult, AcceptSpec, TransformResult, TransformSpec
from workers.stage_records.measuring import (
    CheckResult,
    CheckSpec,
    ScoreResult,
    ScoreSpec,
    SenseResult,
    SenseSpec,
    TimeResult,
    TimeSpec,
    WeighResult,
    WeighSpec,
)
from workers.stage_records.training import OverlapResult, OverlapSpec, TrainResult, TrainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One line of the table: where the function is, and the records it takes and gives."""

    function: str
    spec: type[Any]
    result: type[Any]


STAGES: dict[str, Stage] = {
    "convert": Stage(function="workers.formats:convert", spec=ConvertSpec, result=ConvertResult),
    "verify": Stage(function="workers.measure.conversion:verify", spec=VerifySpec, result=VerifyResult),
    "describe": Stage(function="workers.data.describe:describe", spec=DescribeSpec, result=DescribeResult),
    "transform": Stage(function="workers.toolchains:transform", spec=TransformSpec, result=TransformResult),
    "train": Stage(function="workers.training.stage:train", spec=TrainSpec, result=TrainResult),
    "accept": Stage(function="workers.toolchains.finish:accept", spec=AcceptSpec, result=AcceptResult),
    "sense": Stage(function="workers.measure.sensitivity:sense", spec=SenseSpec, result=SenseResult),
    "check": Stage(function="workers.measure.checks:check", spec=CheckSpec, result=CheckResult),
    "overlap": Stage(function="workers.measure.row_identity:overlap", spec=OverlapSpec, result=OverlapResult),
    "score": Stage(function="workers.measure.score:score", spec=ScoreSpec, result=ScoreResult),
    "time": Stage(function="workers.measure.timing:measure", spec=TimeSpec, result=TimeResult),
    "weigh": Stage(function="workers.measure.memory:weigh", spec=WeighSpec, result=WeighResult),
}
