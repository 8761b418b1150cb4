"""Faults: a clear error, nothing lost. Each test that harms a process starts an Octet of its own."""

import os
import secrets
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psutil
import pytest

from app.client import Octet
from app.domain.errors import QueueUnavailable, StoreFull
from app.domain.jobs import JobState
from app.domain.recipes import PtqStatic
from tests import graphs
from tests.e2e.conftest import SIDE, Prepared, prepare, save_classifier
from tests.needs import installed, need_root
from tests.running import START_SECONDS, Service, clean_environment, running_service, wait_until


@pytest.fixture(scope="module")
def victim(client: Octet, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(client, tmp_path_factory.mktemp("victim"))


def test_a_job_whose_worker_is_killed_runs_again_and_succeeds_once(
    own: Service, client: Octet, victim: Prepared
) -> None:
    job = client.quantize(victim.name, calibration=victim.calibration, variant="after-the-kill", recipe=PtqStatic())
    running = wait_until(lambda: _running(client, job.id), what="the job runs")
    (worker,) = [child for child in own.children("-m workers") if child.ppid() == own.pid]
    below = worker.children(recursive=True)
    worker.kill()
    assert wait_until(lambda: client.job(job.id).attempt > running, seconds=60, what="another attempt")
    final = client.wait(job.id, timeout_seconds=120)
    assert (final.state, final.attempt) == (JobState.SUCCEEDED, 2)
    assert [variant.name for variant in client.variants(victim.name)].count("after-the-kill") == 1
    _, alive = psutil.wait_procs(below, timeout=5)
    assert not alive


def test_a_worker_that_froze_does_not_spoil_the_attempt_after_it(tmp_path: Path) -> None:
    settings = {"OCTET_JOB_LOST_AFTER_SECONDS": "5"}
    with running_service(tmp_path, settings=settings) as frozen, Octet(frozen.url) as client:
        model = prepare(client, tmp_path)
        job = client.quantize(model.name, calibration=model.calibration, variant="thawed", recipe=PtqStatic())
        wait_until(partial(_running, client, job.id), what="the job runs")
        (worker,) = [child for child in frozen.children("-m workers") if child.ppid() == frozen.pid]
        asleep = [worker, *worker.children(recursive=True)]
        for process in asleep:
            process.suspend()
        second = subprocess.Popen([sys.executable, "-m", "workers"], env=worker.environ(), stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: client.job(job.id).attempt == 2, seconds=60, what="another attempt")
            for process in asleep:
                process.resume()
            assert client.wait(job.id, timeout_seconds=120).state is JobState.SUCCEEDED
        finally:
            second.kill()
            second.wait()
        assert "thawed" in [variant.name for variant in client.variants(model.name)]


def test_a_cancelled_job_stops_at_once_and_the_next_one_runs(own: Service, client: Octet, victim: Prepared) -> None:
    job = client.quantize(victim.name, calibration=victim.calibration, variant="cancelled", recipe=PtqStatic())
    wait_until(partial(_running, client, job.id), what="the job runs")
    assert client.cancel(job.id).state is JobState.CANCELLED
    after = client.quantize(victim.name, calibration=victim.calibration, variant="after-the-cancel", recipe=PtqStatic())
    assert client.wait(after.id, timeout_seconds=120).state is JobState.SUCCEEDED
    assert client.job(job.id).state is JobState.CANCELLED
    assert "cancelled" not in [variant.name for variant in client.variants(victim.name)]
    assert not own.children("workers.stage_child")


def test_jobs_that_wait_for_a_cancelled_import_fail_with_that_reason(client: Octet, tmp_path: Path) -> None:
    model = client.upload_model(save_classifier(tmp_path / "m.onnx"), name=f"unread-{secrets.token_hex(4)}")
    client.upload_dataset(graphs.save_dataset(tmp_path / "rows.npz", graphs.rows(50, side=SIDE)), name=model.name)
    job = client.quantize(model.reference, calibration=model.name, recipe=PtqStatic())
    wait_until(partial(_running, client, model.import_job), what="the import runs")
    client.cancel(model.import_job)
    final = client.wait(job.id, timeout_seconds=60)
    assert final.error is not None
    assert (final.error.code, "was cancelled" in final.error.message) == ("model_not_ready", True)
    assert client.model(model.reference).state == "failed"


def test_a_runner_killed_under_load_costs_no_answer(own: Service, client: Octet, victim: Prepared) -> None:
    expected = client.predict(f"{victim.name}@int8", victim.x[:1]).output
    client.unload(f"{victim.name}@float32")
    stop, answers = threading.Event(), list[npt.NDArray[Any]]()

    def ask() -> None:
        with Octet(own.url) as caller:
            while not stop.is_set():
                answers.append(caller.predict(f"{victim.name}@int8", victim.x[:1]).output)

    with ThreadPoolExecutor(8) as callers:
        asking = [callers.submit(ask) for _ in range(8)]
        try:
            for _ in range(3):
                (runner,) = wait_until(lambda: own.children("workers.runners"), what="a runner")
                runner.kill()
                seen = len(answers)
                wait_until(partial(_more_than, answers, seen + 100), what="answers from the next runner")
        finally:
            stop.set()
        for asked in asking:
            asked.result()
    assert all(np.allclose(answer, expected, atol=1e-4) for answer in answers)
    assert f'octet_runner_restarts_total{{model="{victim.name}",variant="int8",version="1"}} 3.0' in client.metrics()


def test_without_redis_predictions_go_on_and_job_routes_say_503(own: Service, client: Octet, victim: Prepared) -> None:
    client.predict(f"{victim.name}@int8", victim.x[:1])
    (redis,) = own.children("redis-server")
    redis.suspend()
    try:
        assert client.predict(f"{victim.name}@int8", victim.x[:1]).output.shape == (1, 4)
        with pytest.raises(QueueUnavailable):
            client.jobs()
        with pytest.raises(QueueUnavailable):
            client.quantize(victim.name, calibration=victim.calibration, recipe=PtqStatic())
        answer = httpx.get(f"{own.url}/v1/jobs", timeout=30, trust_env=False)
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    finally:
        redis.resume()
    assert wait_until(client.jobs, what="jobs are listed again")


def test_a_redis_that_is_killed_comes_back_with_its_jobs(own: Service, client: Octet, victim: Prepared) -> None:
    before = [job.id for job in client.jobs()]
    (redis,) = own.children("redis-server")
    redis.kill()
    wait_until(lambda: _listed(client) == before, what="the same jobs are listed")
    job = client.quantize(victim.name, calibration=victim.calibration, variant="after-redis", recipe=PtqStatic())
    assert client.wait(job.id, timeout_seconds=120).state is JobState.SUCCEEDED


def test_two_uploads_of_one_name_at_once_become_two_versions(octet: Octet, tmp_path: Path) -> None:
    name, path = f"twice-{secrets.token_hex(4)}", save_classifier(tmp_path / "m.onnx")
    with ThreadPoolExecutor(2) as both:
        versions = list(both.map(lambda _: octet.upload_model(path, name=name).version, range(2)))
    assert sorted(versions) == [1, 2]
    assert {octet.wait_model(f"{name}:{version}").state for version in versions} == {"ready"}


def test_a_disk_that_fills_up_during_an_upload_leaves_nothing_behind(tmp_path: Path) -> None:
    need_root()
    store = tmp_path / "small"
    store.mkdir()
    mount = f'mount -t tmpfs -o size=24m tmpfs {store} && exec "$@"'
    prefix = (installed("unshare", package="util-linux"), "--mount", "sh", "-c", mount, "sh")
    with (
        running_service(tmp_path, prefix=prefix, settings={"OCTET_STORE_URL": str(store)}) as small,
        Octet(small.url) as client,
    ):
        big = tmp_path / "big.onnx"
        big.write_bytes(bytes(40_000_000))
        with pytest.raises(StoreFull):
            client.upload_model(big, name="big")
        assert client.models() == []
        seen = subprocess.run(
            ["nsenter", f"--target={small.pid}", "--mount", "find", str(store), "-type", "f"],
            capture_output=True,
            check=True,
        )
        assert seen.stdout == b""
        client.upload_model(save_classifier(tmp_path / "m.onnx"), name="small")
        assert client.wait_model("small").state == "ready"


def test_an_octet_that_is_killed_leaves_no_process_behind_and_keeps_its_models(tmp_path: Path) -> None:
    with running_service(tmp_path) as first, Octet(first.url) as client:
        client.upload_model(save_classifier(tmp_path / "m.onnx"), name="kept")
        client.wait_model("kept")
        client.load("kept@float32")
        below = psutil.Process(first.pid).children(recursive=True)
        os.kill(first.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(below, timeout=20)
        assert not alive
    with running_service(tmp_path) as second, Octet(second.url) as client:
        assert client.predict("kept", graphs.rows(1, side=SIDE)).output.shape == (1, 4)
        assert [job.state for job in client.jobs()] == [JobState.SUCCEEDED]


def test_a_second_octet_on_the_same_data_is_refused(own: Service) -> None:
    environment = clean_environment() | {"OCTET_DATA_DIR": str(own.data_dir), "OCTET_PORT": "0"}
    second = subprocess.run(
        [sys.executable, "-m", "app.launcher", "serve"],
        env=environment,
        capture_output=True,
        check=False,
        timeout=START_SECONDS,
    )
    assert second.returncode == 1
    assert b"another Octet uses" in second.stderr


def _running(client: Octet, job: str) -> int:
    state = client.job(job)
    return state.attempt if state.state is JobState.RUNNING and state.step != "starting" else 0


def _more_than(answers: list[npt.NDArray[Any]], count: int) -> bool:
    return len(answers) > count


def _listed(client: Octet) -> list[str]:
    try:
        return [job.id for job in client.jobs()]
    except QueueUnavailable:
        return []
