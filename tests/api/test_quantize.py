"""The one-shot."""

import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.jobs import JobError
from app.domain.names import Reference
from tests.api.harness import Api, job_of, publish_variant
from tests.graphs import conv_classifier
from tests.running import wait_until
from tests.serving import variant_of

NOW = datetime.now(UTC)
MODEL, ROWS, TEST_ROWS = ("net.onnx", b"model"), ("rows.npz", b"rows"), ("test.npz", b"test")


def one_shot(api: Api, form: list[tuple[str, Any]], *, prefer: str | None = None) -> httpx.Response:
    return api.client.post("/v1/quantize", files=form, headers={"Prefer": prefer} if prefer else None)


def text(name: str, value: str) -> tuple[str, tuple[None, bytes]]:
    return name, (None, value.encode())


def test_the_one_shot_queues_imports_and_the_job(api: Api) -> None:
    answer = one_shot(api, [text("name", "mine"), ("model", MODEL), ("calibration", ROWS), ("evaluation", TEST_ROWS)])
    assert (answer.status_code, answer.json()["model"]) == (202, "mine:1")
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["calibration"], job["evaluation"], job["recipe"]["technique"]) == ("rows:1", "test:1", "ptq_static")
    kinds = [other["kind"] for other in api.client.get("/v1/jobs").json()["jobs"]]
    assert sorted(kinds) == ["import", "import", "import", "quantize"]


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ([("calibration", ROWS)], "request_invalid"),
        ([("calibration", ROWS), ("model", MODEL)], "request_invalid"),
        ([("model", MODEL)], "recipe_invalid"),
        ([("model", MODEL), ("calibration", ROWS), text("recipe", "{}")], "request_invalid"),
        ([text("recipe", '{"technique": "cast"}'), ("model", MODEL)], "recipe_invalid"),
        ([text("recipe", '{"technique": "ptq_static", "bits": 2}'), ("model", MODEL)], "recipe_invalid"),
        ([text("recipe", "{"), ("model", MODEL)], "recipe_invalid"),
        ([("model", MODEL), ("calibration", ("rows.npz", b""))], "empty_upload"),
        ([], "request_invalid"),
    ],
)
def test_a_form_that_cannot_be_done_leaves_nothing(api: Api, form: list[tuple[str, Any]], code: str) -> None:
    answer = one_shot(api, form or [text("name", "x")])
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert api.stored() == []
    assert api.client.get("/v1/jobs").json() == {"jobs": []}


def test_the_name_float32_is_taken_on_every_model(api: Api) -> None:
    answer = one_shot(api, [text("variant", "float32"), ("model", MODEL), ("calibration", ROWS)])
    assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")
    assert api.stored() == []


def test_who_waits_too_short_gets_the_job(api: Api) -> None:
    answer = one_shot(api, [("model", MODEL), ("calibration", ROWS)], prefer="wait=0")
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0")


def test_who_waits_gets_the_artifact(api: Api, tmp_path: Path) -> None:
    made = variant_of(conv_classifier(), tmp_path, name="int8")

    def work() -> None:
        job = job_of(api, the_quantize_job(api)).start(NOW)
        model = Reference.parse(job.model or "")
        variant = replace(made, model=model.name, version=model.version or 0)
        api.do(lambda services: publish_variant(services, variant, tmp_path))
        api.do(lambda services: services.live.save(job.succeed(NOW, variant="int8")))

    worker = threading.Thread(target=work)
    worker.start()
    answer = one_shot(api, [("model", MODEL), ("calibration", ROWS)], prefer="respond-async, wait=30")
    worker.join()
    assert (answer.status_code, answer.content) == (200, (tmp_path / made.artifact.file).read_bytes())
    assert answer.headers["location"] == "/v1/models/net:1/variants/int8"
    assert answer.headers["preference-applied"] == "wait=30"
    assert len(answer.headers["octet-job"]) == 32


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("no_int8_kernels", "No int8 kernel runs."),
        ("upload_unreadable", "net:1 could not be imported: It is no ONNX."),  # random bytes
        ("signature_mismatch", "Array 'x' is float64, but the model takes float32."),  # float64 rows
        ("dataset_unfit", "rows:1 could not be imported: Array 'x' has NaN in row 3."),  # NaN
    ],
)
def test_who_waits_for_a_failure_gets_its_code(api: Api, code: str, message: str) -> None:
    def work() -> None:
        job = job_of(api, the_quantize_job(api)).start(NOW)
        error = JobError(code=code, message=message)
        api.do(lambda services: services.live.save(job.fail(NOW, error)))

    worker = threading.Thread(target=work)
    worker.start()
    answer = one_shot(api, [("model", MODEL), ("calibration", ROWS)], prefer="wait=30")
    worker.join()
    assert (answer.status_code, answer.json()["code"], answer.json()["detail"]) == (422, code, message)


def the_quantize_job(api: Api) -> str:
    def found() -> str | None:
        jobs = api.do(lambda services: services.live.newest(10))
        return next((job.id for job in jobs if job.kind == "quantize"), None)

    job = wait_until(found, what="the quantize job")
    assert job is not None
    return job
