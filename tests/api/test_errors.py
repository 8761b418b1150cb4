"""The error table, and what every error answer carries."""

import logging

import pytest

from app.api.errors import TABLE, answered
from app.domain.errors import OctetError, RangeInvalid, TooMany, Unavailable, tree
from tests.api.harness import Api


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.__dict__.get("code") for error in tree()]
    assert None not in codes
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("error", tree(), ids=lambda error: error.__name__)
def test_every_error_has_a_status(error: type[OctetError]) -> None:
    row = answered(error)
    assert 400 <= row.status <= 599
    assert error is OctetError or row is not TABLE[OctetError]


def test_only_errors_that_pass_say_when_to_try_again() -> None:
    waiting = {family for family, row in TABLE.items() if row.retry_after_seconds is not None}
    assert waiting == {TooMany, Unavailable}
    assert answered(RangeInvalid).status == 416


def test_an_error_is_a_problem_with_an_id(api: Api) -> None:
    answer = api.client.get("/v1/models/nothing", headers={"X-Request-Id": "my-request.7"})
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"], problem["request_id"]) == (404, "model_not_found", "my-request.7")
    assert problem["error"] == problem["detail"]
    assert answer.headers["x-request-id"] == "my-request.7"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("DELETE", "/v1/models", 405), ("GET", "/docs/static/no", 404)],
)
def test_the_frameworks_own_errors_are_problems_too(api: Api, method: str, path: str, status: int) -> None:
    answer = api.client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status


def test_an_insane_request_id_is_replaced(api: Api) -> None:
    answer = api.client.get("/livez", headers={"X-Request-Id": 'a" b'})
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff\xfe", b""])
def test_json_that_cannot_be_read_is_the_callers_mistake(api: Api, body: bytes) -> None:
    answer = api.client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_json_body_without_end_is_refused(api: Api) -> None:
    answer = api.client.post("/v1/jobs", content=b" " * (2**20 + 1), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")


def test_a_bug_tells_the_caller_nothing_but_an_id(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    @api.app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("secret")

    with caplog.at_level(logging.ERROR, "octet.api"):
        answer = api.client.get("/broken")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["detail"]
    assert any(record.exc_info for record in caplog.records)


def test_every_request_is_logged_and_counted(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "octet.access"):
        api.client.get("/v1/models/nothing")
        api.client.get("/nowhere")
        metrics = api.client.get("/metrics").text
    assert 'octet_http_requests_total{method="GET",route="/v1/models/{model}",status="404"} 1.0' in metrics
    assert 'octet_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in metrics
    logged = [vars(record)["octet"] for record in caplog.records if record.name == "octet.access"]
    assert logged[0]["route"] == "/v1/models/{model}"
    assert logged[0]["status"] == 404
