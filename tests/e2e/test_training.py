"""Training on a whole Octet: a killed worker costs nothing but time, and whoever has enough keeps the best."""

import secrets
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from app.client import Octet
from app.domain.jobs import Job, JobState
from app.domain.recipes import Qat
from app.domain.training import Training
from tests import graphs
from tests.e2e.conftest import SIDE, save_classifier
from tests.running import Service, wait_until

STEPS = 200
"""Enough to last longer than `checkpoint_seconds` on a fast machine."""


@pytest.fixture(scope="module")
def name(client: Octet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Upload a small classifier, 300 rows that train and 60 that score, labelled with its own answers as numbers."""
    made, folder = f"trained-{secrets.token_hex(4)}", tmp_path_factory.mktemp("trained")
    client.upload_model(save_classifier(folder / "classifier.onnx", width=16), name=made)
    client.wait_model(made)
    x = graphs.rows(360, side=SIDE)
    answers = np.concatenate([client.predict(made, x[start : start + 90]).output for start in range(0, 360, 90)])
    client.upload_dataset(graphs.save_dataset(folder / "rows.npz", x[:300], answers[:300]), name=made)
    client.upload_dataset(graphs.save_dataset(folder / "scoring.npz", x[300:], answers[300:]), name=f"{made}-scoring")
    return made


def order(client: Octet, name: str, *, variant: str, **fields: Any) -> Job:
    recipe: dict[str, Any] = {
        "toolchain": "ort",
        "observer": "percentile",  # a bad start, quickly made: there is something to recover
        "percentile": 90.0,
        "loss": "mse",
        "batch_size": 32,
        "steps": STEPS,
        "looks": 4,
        "checkpoint_seconds": 1.0,
        "calibration_rows": 50,
    }
    return client.quantize(
        name, training=name, evaluation=f"{name}-scoring", recipe=Qat(**{**recipe, **fields}), variant=variant
    )


def training_of(client: Octet, name: str, variant: str) -> Training:
    training = client.report(f"{name}@{variant}").training
    assert training is not None
    return training


def kept_states(own: Service) -> list[Path]:
    """Return the records of the checkpoints that are whole in the store."""
    records = (own.data_dir / "store" / "checkpoints").glob("*/*/record.json")
    return [record for record in records if record.parent.name != "starts"]


def forks(own: Service) -> list[psutil.Process]:
    """Return the processes that carry out jobs: forked by the worker, and called what it is called."""
    workers = own.children("-m workers")
    return [process for process in workers if process.ppid() in {worker.pid for worker in workers}]


def test_a_training_whose_worker_is_killed_goes_on_and_ends_as_if_nothing_had_happened(
    own: Service, client: Octet, name: str
) -> None:
    job = order(client, name, variant="disturbed")
    wait_until(partial(kept_states, own), seconds=60, what="a checkpoint")
    (fork,) = [process for process in forks(own) if "stage_child" not in " ".join(process.cmdline())]
    fork.kill()
    final = client.wait(job.id, timeout_seconds=120)
    assert (final.state, final.attempt) == (JobState.SUCCEEDED, 2)
    client.wait_success(order(client, name, variant="undisturbed").id, timeout_seconds=120)
    one, other = (training_of(client, name, variant) for variant in ("disturbed", "undisturbed"))
    assert (len(one.outcome.resumed_at), other.outcome.resumed_at) == (1, ())
    assert (one.returned, one.outcome.points) == ("trained", other.outcome.points)
    artifacts = {variant.name: variant.artifact for variant in client.variants(name)}
    assert artifacts["disturbed"].sha256 == artifacts["undisturbed"].sha256
    assert not (own.data_dir / "store" / "checkpoints").exists()


def test_a_training_called_off_with_the_best_kept_publishes_what_it_has(client: Octet, name: str) -> None:
    job = order(client, name, variant="so-far", steps=10_000, looks=1000)
    wait_until(lambda: client.job(job.id).training_progress, seconds=60, what="training")
    client.cancel(job.id, keep_best=True)
    assert client.wait(job.id, timeout_seconds=120).state is JobState.SUCCEEDED
    outcome = training_of(client, name, "so-far").outcome
    assert (outcome.ended, outcome.steps_done < outcome.steps) == ("stopped on request", True)


def test_a_training_that_only_spoils_its_start_publishes_the_start(client: Octet, name: str) -> None:
    job = order(client, name, variant="spoilt", steps=4, learning_rate=1.0, gradient_clip=None, schedule="constant")
    client.wait_success(job.id, timeout_seconds=120)
    report = client.report(f"{name}@spoilt")
    assert report.training is not None
    assert (report.training.returned, report.training.choice in report.notes) == ("start", True)
    assert report.training.outcome.best_step == 0
    assert set(report.latency) - {"bfloat16"} == {"float32", "spoilt"}  # there is nothing to set beside the start


def test_rows_that_train_are_refused_where_they_score_in_another_file(client: Octet, name: str, tmp_path: Path) -> None:
    x = graphs.rows(360, side=SIDE)  # the same as above
    again = graphs.save_dataset(tmp_path / "again.npz", x[200:], np.zeros(160, np.int64))
    client.upload_dataset(again, name=f"{name}-again")
    job = client.quantize(name, training=name, evaluation=f"{name}-again", recipe=Qat(steps=1, batch_size=8))
    final = client.wait(job.id, timeout_seconds=60)
    assert final.error is not None
    assert (final.error.code, "100 of the 160 evaluation rows" in final.error.message) == ("dataset_unfit", True)


def test_a_model_that_is_too_small_to_gain_is_refused_before_it_trains(client: Octet, tmp_path: Path) -> None:
    tiny = f"tiny-{secrets.token_hex(4)}"
    client.upload_model(save_classifier(tmp_path / "tiny.onnx", width=1), name=tiny)
    client.upload_dataset(graphs.save_dataset(tmp_path / "rows.npz", graphs.rows(60, side=SIDE)), name=tiny)
    job = client.quantize(tiny, training=tiny, recipe=Qat(toolchain="ort", steps=4, batch_size=8))
    final = client.wait(job.id, timeout_seconds=120)
    assert final.error is not None
    assert (final.error.code, final.training_progress) == ("larger_than_float", None)
    assert "training" not in [step.step for step in final.steps]
