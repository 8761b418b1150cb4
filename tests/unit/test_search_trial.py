"""Which trials are kept for later attempts, and in which metric a score is read."""

import pytest

from app.domain.errors import (
    DatasetUnfit,
    JobFailure,
    NoInt8Kernels,
    OutOfDisk,
    OutOfMemory,
    OutOfTime,
    SandboxUnavailable,
    StageCrashed,
    ToolchainFailed,
)
from app.domain.evidence import Interval, MetricScore
from tests.unit.test_domain_records import DATASET
from workers.jobs.search.trial import lasting, metric_among

ZERO = Interval(value=0, low=0, high=0)


def score(name: str) -> MetricScore:
    return MetricScore(name=name, rows=9, measured={"float32": ZERO}, drop=ZERO, p_value=None, method="")


@pytest.mark.parametrize("failure", [OutOfMemory, OutOfDisk, OutOfTime, StageCrashed, SandboxUnavailable])
def test_what_the_machine_made_fail_is_tried_again_by_the_next_attempt(failure: type[JobFailure]) -> None:
    assert not lasting(failure("It failed."))


@pytest.mark.parametrize("failure", [None, ToolchainFailed("It failed."), NoInt8Kernels("It failed.")])
def test_what_the_candidate_made_fail_is_not(failure: JobFailure | None) -> None:
    assert lasting(failure)


def test_the_metric_of_the_trials_counts_whatever_else_the_rows_give() -> None:
    scores = (score("top1"), score("agreement"))
    assert metric_among(scores, None, dataset=DATASET).name == "top1"
    assert metric_among(scores, "agreement", dataset=DATASET).name == "agreement"


def test_rows_that_do_not_give_the_metric_of_the_trials_are_refused() -> None:
    with pytest.raises(DatasetUnfit, match="top1"):
        metric_among((score("agreement"),), "top1", dataset=DATASET)
