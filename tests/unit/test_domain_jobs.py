"""The states of a job."""

from datetime import UTC, datetime
from itertools import product

import pytest

from app.domain.errors import IllegalTransition
from app.domain.jobs import Job, JobError, JobKind, JobState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUEUED = Job(id="0" * 32, kind=JobKind.QUANTIZE, created_at=NOW)
ERROR = JobError(code="toolchain_failed", message="why")


def test_a_job_goes_from_queued_to_succeeded() -> None:
    job = QUEUED.start(NOW).succeed(NOW, variant="int8")
    assert (job.state, job.percent, job.variant, job.attempt) == (JobState.SUCCEEDED, 100.0, "int8", 1)


def test_a_job_whose_worker_was_lost_starts_again() -> None:
    assert QUEUED.start(NOW).start(NOW).attempt == 2


def test_a_failed_job_says_why() -> None:
    assert QUEUED.start(NOW).fail(NOW, ERROR).error == ERROR


@pytest.mark.parametrize(
    ("state", "to"), list(product([state for state in JobState if state.final], JobState)), ids=lambda state: state
)
def test_a_final_job_never_changes(state: JobState, to: JobState) -> None:
    final = {
        JobState.SUCCEEDED: QUEUED.start(NOW).succeed(NOW),
        JobState.FAILED: QUEUED.fail(NOW, ERROR),
        JobState.CANCELLED: QUEUED.cancel(NOW),
    }[state]
    with pytest.raises(IllegalTransition):
        final.to(to)


def test_a_queued_job_cannot_succeed() -> None:
    with pytest.raises(IllegalTransition):
        QUEUED.succeed(NOW)
