"""Jobs: ask for them, follow them, call them off."""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.jobs import Job, JobError
from tests.api.harness import Api, fail_import, job_of, publish_dataset, publish_model

RECIPE = {"technique": "ptq_static"}
QUANTIZE: dict[str, Any] = {"kind": "quantize", "model": "net", "calibration": "rows", "recipe": RECIPE}
NOW = datetime.now(UTC)


@pytest.fixture
def ready(api: Api, tmp_path: Path) -> Api:
    """The application with a model and a dataset."""
    publish_model(api, tmp_path)
    publish_dataset(api)
    return api


def quantize(api: Api, **changes: object) -> httpx.Response:
    return api.client.post("/v1/jobs", json=QUANTIZE | changes)


def queued(api: Api) -> Job:
    return job_of(api, quantize(api).json()["id"])


def save(api: Api, job: Job) -> None:
    api.do(lambda services: services.live.save(job))


def test_a_job_is_queued_with_its_references_resolved(ready: Api) -> None:
    answer = quantize(ready, variant="small")
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["model"], job["calibration"], job["variant"]) == ("net:1", "rows:1", "small")
    assert job["recipe"]["calibration_rows"] == 300
    assert ready.do(lambda services: services.queue.depth()) == 1
    assert ready.client.get(f"/v1/jobs/{job['id']}").json() == job
    assert ready.client.get("/v1/jobs?limit=1").json() == {"jobs": [job]}


def test_a_job_waits_for_imports(api: Api) -> None:
    api.upload_model()
    api.client.post("/v1/datasets", params={"name": "rows", "filename": "a.npz"}, content=b"1")
    assert quantize(api).status_code == 202
    assert api.do(lambda services: services.queue.depth()) == 2  # the imports; the job is deferred


@pytest.mark.parametrize(
    ("changes", "status", "code", "words"),
    [
        ({"model": "nothing"}, 404, "model_not_found", "nothing"),
        ({"calibration": "nothing"}, 404, "dataset_not_found", "nothing"),
        ({"model": "net@int8"}, 422, "name_invalid", "variant"),
        ({"calibration": None}, 422, "recipe_invalid", "calibration"),
        ({"calibration": None, "recipe": {"technique": "cast"}}, 422, "recipe_invalid", "evaluation"),
        ({"evaluation": "rows:1"}, 422, "request_invalid", "both calibrate and evaluate"),
        ({"variant": "float32"}, 409, "name_taken", "float32"),
        ({"variant": "Not A Name"}, 422, "name_invalid", "not usable"),
        ({"colour": "red"}, 422, "request_invalid", "colour"),
        ({"kind": "destroy"}, 422, "request_invalid", "kind"),
        ({"recipe": {**RECIPE, "bits": 4}}, 422, "recipe_invalid", "unknown field 'bits'"),
        ({"recipe": {**RECIPE, "calibration_rows": 0}}, 422, "recipe_invalid", "calibration_rows"),
        ({"recipe": {"technique": "magic"}}, 422, "recipe_invalid", "ptq_static"),
        ({"recipe": {}}, 422, "recipe_invalid", "technique"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused(
    ready: Api, changes: dict[str, object], status: int, code: str, words: str
) -> None:
    answer = quantize(ready, **changes)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert words in answer.json()["detail"]
    assert ready.client.get("/v1/jobs").json() == {"jobs": []}


def test_rows_that_do_not_fit_are_refused_at_once(ready: Api) -> None:
    publish_dataset(ready, name="wide", row_shape=(3, 9, 9))
    publish_dataset(ready, name="other", array="y")
    for dataset in ("wide", "other"):
        answer = quantize(ready, calibration=dataset)
        assert (answer.status_code, answer.json()["code"]) == (422, "signature_mismatch")


def test_a_job_on_a_failed_model_is_refused(ready: Api) -> None:
    ready.upload_model("broken")
    fail_import(ready, "broken", 1)
    answer = quantize(ready, model="broken")
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_ready")
    assert "It is broken." in answer.json()["detail"]


def test_an_evaluate_job_needs_a_published_variant(ready: Api) -> None:
    asked = {"kind": "evaluate", "model": "net", "variant": "float32", "evaluation": "rows"}
    answer = ready.client.post("/v1/jobs", json=asked)
    assert (answer.status_code, answer.json()["evaluation"]) == (202, "rows:1")
    answer = ready.client.post("/v1/jobs", json=asked | {"variant": "int8"})
    assert (answer.status_code, answer.json()["code"]) == (404, "variant_not_found")


def test_a_key_makes_one_job(ready: Api) -> None:
    key = {"Idempotency-Key": "deploy-7"}
    first, second = (ready.client.post("/v1/jobs", json=QUANTIZE, headers=key) for _ in range(2))
    assert first.json() == second.json()
    assert (second.status_code, second.headers["location"]) == (202, first.headers["location"])
    assert len(ready.client.get("/v1/jobs").json()["jobs"]) == 1


def test_a_key_is_for_one_request(ready: Api) -> None:
    key = {"Idempotency-Key": "deploy-7"}
    ready.client.post("/v1/jobs", json=QUANTIZE, headers=key)
    answer = ready.client.post("/v1/jobs", json=QUANTIZE | {"variant": "other"}, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


def test_a_refused_request_does_not_use_up_its_key(ready: Api) -> None:
    key = {"Idempotency-Key": "deploy-7"}
    assert ready.client.post("/v1/jobs", json=QUANTIZE | {"model": "later"}, headers=key).status_code == 404
    ready.upload_model("later")
    assert ready.client.post("/v1/jobs", json=QUANTIZE | {"model": "later"}, headers=key).status_code == 202


def test_a_queued_job_is_cancelled(ready: Api) -> None:
    job = queued(ready)
    answer = ready.client.post(f"/v1/jobs/{job.id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert ready.do(lambda services: services.queue.depth()) == 0
    again = ready.client.post(f"/v1/jobs/{job.id}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "illegal_transition")


def test_a_job_that_ended_meanwhile_keeps_its_end(ready: Api) -> None:
    job = queued(ready).start(NOW)
    save(ready, job)
    done = job.succeed(NOW, variant="int8")
    ready.do(lambda services: services.history.finish(done))
    answer = ready.client.post(f"/v1/jobs/{job.id}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")
    assert job_of(ready, job.id).state == "succeeded"


@pytest.mark.parametrize("job", ["f" * 32, "nothing", "..%2F..%2Fetc"])
def test_an_unknown_job_is_not_found(ready: Api, job: str) -> None:
    for path in ("", "/events", "/log", "/report"):
        assert ready.client.get(f"/v1/jobs/{job}{path}").status_code == 404
    assert ready.client.post(f"/v1/jobs/{job}/cancel").status_code == 404


def test_a_job_that_redis_forgot_is_in_history(ready: Api) -> None:
    job = queued(ready).start(NOW).fail(NOW, JobError(code="out_of_memory", message="Too big."))
    ready.do(lambda services: services.history.finish(job, log="line\n"))
    ready.do(lambda services: services.live.forget(job.id))
    assert ready.client.get(f"/v1/jobs/{job.id}").json()["error"]["code"] == "out_of_memory"
    assert ready.client.get(f"/v1/jobs/{job.id}/log").text == "line\n"
    events = ready.client.get(f"/v1/jobs/{job.id}/events").text
    assert events.startswith("event: job\ndata: {")
    assert '"state":"failed"' in events


def test_a_live_log_is_read(ready: Api) -> None:
    job = queued(ready)
    ready.do(lambda services: services.live.append_log(job.id, ["one", "two"]))
    answer = ready.client.get(f"/v1/jobs/{job.id}/log")
    assert (answer.text, answer.headers["content-type"]) == ("one\ntwo\n", "text/plain; charset=utf-8")


def test_the_log_of_a_cancelled_job_is_kept_in_history_alone(ready: Api) -> None:
    job = queued(ready)
    ready.do(lambda services: services.live.append_log(job.id, ["one"]))
    assert ready.client.post(f"/v1/jobs/{job.id}/cancel").status_code == 202
    assert ready.do(lambda services: services.live.log(job.id)) == ""
    assert ready.client.get(f"/v1/jobs/{job.id}/log").text == "one\n"


def test_a_job_without_a_report_is_said_so(ready: Api) -> None:
    answer = ready.client.get(f"/v1/jobs/{queued(ready).id}/report")
    assert (answer.status_code, answer.json()["code"]) == (404, "report_not_found")


def test_events_come_until_the_job_is_final(ready: Api) -> None:
    job = queued(ready)
    seen = threading.Event()
    states: list[str] = []

    def work() -> None:
        assert seen.wait(30)
        running = job.start(NOW)
        save(ready, running)
        save(ready, running.succeed(NOW, variant="int8"))

    worker = threading.Thread(target=work)
    worker.start()
    with ready.client.stream("GET", f"/v1/jobs/{job.id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data:"):
                states.append(line.split('"state":"')[1].split('"')[0])
                seen.set()
    worker.join()
    assert states == ["queued", "running", "succeeded"]


def test_events_go_on_after_the_last_one_seen(ready: Api) -> None:
    job = queued(ready)
    save(ready, job.start(NOW))
    save(ready, job.start(NOW).succeed(NOW))
    path = f"/v1/jobs/{job.id}/events"
    ids = [line[4:] for line in ready.client.get(path).text.splitlines() if line.startswith("id: ")]
    assert len(ids) == 3
    rest = ready.client.get(path, headers={"Last-Event-ID": ids[2]}).text
    assert rest.count("event: job") == 1
    assert '"state":"succeeded"' in rest
    assert ready.client.get(path, headers={"Last-Event-ID": "x"}).status_code == 422


def test_job_routes_say_503_while_redis_is_down(api_without_redis: Api) -> None:
    client = api_without_redis.client
    job = "/v1/jobs/" + "f" * 32
    for method, path in [("GET", "/v1/jobs"), ("GET", job), ("GET", f"{job}/events"), ("POST", f"{job}/cancel")]:
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
        assert "retry-after" in answer.headers


def test_no_job_is_made_while_redis_is_down(api_without_redis: Api, tmp_path: Path) -> None:
    publish_model(api_without_redis, tmp_path)
    publish_dataset(api_without_redis)
    before = api_without_redis.stored()
    answer = quantize(api_without_redis)
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
    assert api_without_redis.stored() == before
