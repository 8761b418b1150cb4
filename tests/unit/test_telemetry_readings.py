"""What is shown of training, from the jobs that run."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from app.domain.jobs import Job, JobKind
from app.domain.recipes import Qat
from app.domain.training import TrainingProgress
from app.telemetry.readings import Readings, ReadingsCollector, training_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROGRESS = TrainingProgress(
    step=3, steps=9, loss=0.5, score=0.25, best_score=0.2, learning_rate=0.01, rows_per_second=64.0, seconds_left=6.0
)
JOB = Job(id="0" * 32, kind=JobKind.QUANTIZE, created_at=NOW, model="net:2", recipe=Qat(), training_progress=PROGRESS)


def shown(*jobs: Job) -> dict[str, dict[tuple[str, str], float]]:
    """Return the series of training, by metric."""
    families = ReadingsCollector(Readings(training=training_of(jobs))).collect()
    return {
        family.name: {(each.labels["model"], each.labels["version"]): each.value for each in family.samples}
        for family in families
        if family.name.startswith("octet_training_")
    }


def test_a_job_that_trains_shows_where_it_stands() -> None:
    assert {name: series[("net", "2")] for name, series in shown(JOB).items()} == {
        "octet_training_step": 3,
        "octet_training_steps": 9,
        "octet_training_loss": 0.5,
        "octet_training_score": 0.25,
        "octet_training_learning_rate": 0.01,
        "octet_training_rows_per_second": 64.0,
    }


def test_what_is_not_known_yet_has_no_series() -> None:
    begun = shown(replace(JOB, training_progress=replace(PROGRESS, loss=None, score=None)))
    assert [name for name, series in begun.items() if not series] == ["octet_training_loss", "octet_training_score"]


def test_jobs_that_do_not_train_yet_have_none() -> None:
    assert not any(shown(replace(JOB, training_progress=None)).values())


def test_of_two_jobs_on_one_version_the_newer_one_is_shown() -> None:
    newer = replace(JOB, created_at=NOW + timedelta(minutes=1), training_progress=replace(PROGRESS, step=1))
    other = replace(JOB, model="other:1")
    for jobs in ((JOB, newer, other), (other, newer, JOB)):
        assert shown(*jobs)["octet_training_step"] == {("net", "2"): 1, ("other", "1"): 3}
