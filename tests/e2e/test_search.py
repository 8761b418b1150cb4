"""Technique `auto` on a whole Octet: the answer and its proof, and that no finished trial is ever lost."""

import json
import secrets
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.client import Octet
from app.domain.jobs import Job, JobState
from app.domain.recipes import Auto, Budget, PtqStatic, WeightOnly
from tests import graphs
from tests.e2e.conftest import SIDE, save_classifier
from tests.running import Service, wait_until

SECONDS = 45
"""Enough for some trials of so small a model, and for the final measuring."""


@pytest.fixture(scope="module")
def name(client: Octet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Upload a small classifier, 400 rows that calibrate and choose, and 100 that score, all under one name."""
    made, folder = f"searched-{secrets.token_hex(4)}", tmp_path_factory.mktemp("searched")
    client.upload_model(save_classifier(folder / "classifier.onnx", width=48), name=made)
    client.wait_model(made)
    x = graphs.rows(500, side=SIDE)
    parts = [client.predict(made, x[start : start + 100]).output.argmax(1) for start in range(0, 500, 100)]
    labels = np.concatenate(parts).astype(np.int64)
    client.upload_dataset(graphs.save_dataset(folder / "rows.npz", x[:400], labels[:400]), name=made)
    client.upload_dataset(graphs.save_dataset(folder / "scoring.npz", x[400:], labels[400:]), name=f"{made}-scoring")
    return made


def order(client: Octet, name: str, *, variant: str, **fields: Any) -> Job:
    recipe = Auto(**{"time_limit_seconds": SECONDS, "calibration_rows": 50, "budget": Budget(max_drop=0.1), **fields})
    return client.quantize(name, calibration=name, evaluation=f"{name}-scoring", recipe=recipe, variant=variant)


def finished_trials(own: Service) -> dict[str, Any]:
    """Return the records of the trials in the store, by key."""
    files = (own.data_dir / "store" / "searches").glob("*/*.json")
    read = [json.loads(path.read_bytes()) for path in files if not path.name.endswith(".layers.json")]
    return {record["trial"]["key"]: record["trial"] for record in read}


def test_a_search_survives_its_workers_death_and_ends_with_a_proven_winner(
    own: Service, client: Octet, name: str
) -> None:
    job = order(client, name, variant="best")
    kept = wait_until(partial(finished_trials, own), seconds=60, what="a trial")
    (worker,) = [child for child in own.children("-m workers") if child.ppid() == own.pid]
    worker.kill()
    final = client.wait(job.id, timeout_seconds=240)
    assert (final.state, final.attempt) == (JobState.SUCCEEDED, 2)
    assert not any(step.step.startswith("trial 1:") for step in final.steps)
    report = client.report(f"{name}@best")
    search = report.search
    assert search is not None
    assert {trial.key: trial.artifact_sha256 for trial in search.trials[: len(kept)]} == {
        key: trial["artifact_sha256"] for key, trial in kept.items()
    }
    assert report.verdict is not None
    assert (search.selection.dataset, report.evaluation and report.evaluation.dataset) == (
        f"{name}:1",
        f"{name}-scoring:1",
    )
    assert search.forecast.actual_seconds is not None
    assert not finished_trials(own)


def test_what_a_cancelled_search_has_finished_is_the_answer_to_the_next_one(
    own: Service, client: Octet, name: str
) -> None:
    first = order(client, name, variant="called-off", seed=1)
    kept = wait_until(partial(finished_trials, own), seconds=60, what="a trial")
    assert client.cancel(first.id).state is JobState.CANCELLED
    second = order(client, name, variant="so-far", seed=1, time_limit_seconds=10)
    assert client.wait(second.id, timeout_seconds=120).state is JobState.SUCCEEDED
    search = client.report(f"{name}@so-far").search
    assert search is not None
    assert (search.ended, set(kept) <= {trial.key for trial in search.trials}) == ("time limit", True)
    assert "called-off" not in [variant.name for variant in client.variants(name)]


@pytest.fixture(scope="module")
def impossible(client: Octet, name: str) -> Job:
    """A search with seed 2 that failed on its budget: its trials stay in the store."""
    job = order(client, name, variant="impossible", seed=2, budget=Budget(max_drop=0.1, max_size_bytes=10))
    return client.wait(job.id, timeout_seconds=240)


def kept_report(client: Octet, job: Job) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{client.base_url}/v1/jobs/{job.id}/report", timeout=30, trust_env=False).json()
    return found


def test_a_budget_that_nothing_keeps_fails_with_the_nearest_miss_and_all_that_was_found(
    client: Octet, impossible: Job
) -> None:
    assert impossible.error is not None
    assert (impossible.error.code, "may have 10" in impossible.error.message) == ("budget_missed", True)
    report = kept_report(client, impossible)
    assert report["verdict"]["outcome"] == "missed"
    assert report["search"]["trials"]


def test_a_search_whose_final_rows_cannot_score_keeps_its_trials(
    client: Octet, name: str, impossible: Job, tmp_path: Path
) -> None:
    wrong = graphs.save_dataset(tmp_path / "wrong.npz", graphs.rows(100, side=SIDE), np.full(100, 99, np.int64))
    client.upload_dataset(wrong, name=f"{name}-wrong")
    recipe = Auto(time_limit_seconds=10, calibration_rows=50, seed=2, budget=Budget(max_drop=0.1))
    job = client.quantize(name, calibration=name, evaluation=f"{name}-wrong", recipe=recipe, variant="unscored")
    final = client.wait(job.id, timeout_seconds=120)
    assert final.error is not None
    assert final.error.code == "dataset_unfit"
    before = {trial["key"] for trial in kept_report(client, impossible)["search"]["trials"]}
    assert before <= {trial["key"] for trial in kept_report(client, final)["search"]["trials"]}


def test_a_time_limit_shorter_than_a_trial_is_refused_before_any_work(client: Octet, name: str) -> None:
    final = client.wait(order(client, name, variant="hasty", seed=3, time_limit_seconds=10).id, timeout_seconds=60)
    assert final.error is not None
    assert (final.error.code, "time_limit_seconds" in final.error.message) == ("does_not_fit", True)


def test_a_job_that_fails_on_its_findings_keeps_them(client: Octet, tmp_path: Path) -> None:
    tiny = f"tiny-{secrets.token_hex(4)}"
    client.upload_model(save_classifier(tmp_path / "tiny.onnx", width=1), name=tiny)
    client.upload_dataset(graphs.save_dataset(tmp_path / "rows.npz", graphs.rows(60, side=SIDE)), name=tiny)
    client.wait_model(tiny)
    client.wait_dataset(tiny)
    final = client.wait(client.quantize(tiny, calibration=tiny, recipe=PtqStatic()).id, timeout_seconds=120)
    assert final.error is not None
    assert final.error.code == "larger_than_float"
    report = kept_report(client, final)
    assert set(report["latency"]) >= {"float32", "int8"}
    assert client.variants(tiny)[0].name == "float32"


def test_a_recipe_that_cannot_be_carried_out_leaves_what_is_known_of_float32_and_the_rows(
    client: Octet, name: str
) -> None:
    recipe = WeightOnly(bits=4, group_size=17)  # no layer has a multiple of 17 weights along its input
    final = client.wait(client.quantize(name, evaluation=f"{name}-scoring", recipe=recipe).id, timeout_seconds=120)
    assert final.error is not None
    assert (final.error.code, "group_size 17" in final.error.message) == ("toolchain_failed", True)
    report = kept_report(client, final)
    assert report["diagnosis"] == [{"question": "Why did it not convert?", "answer": [final.error.message], "next": []}]
    assert "float32" in report["latency"]


def test_rows_that_cannot_score_leave_what_was_measured_without_them(client: Octet, name: str, tmp_path: Path) -> None:
    wrong = graphs.save_dataset(tmp_path / "wrong.npz", graphs.rows(40, side=SIDE), np.full(40, 99, np.int64))
    client.upload_dataset(wrong, name=f"{name}-unlabelled")
    job = client.quantize(name, calibration=name, evaluation=f"{name}-unlabelled", recipe=PtqStatic())
    final = client.wait(job.id, timeout_seconds=240)
    assert final.error is not None
    assert final.error.code == "dataset_unfit"
    report = kept_report(client, final)
    assert (set(report["latency"]) >= {"float32", "int8"}, report["notes"][0]) == (True, final.error.message)
