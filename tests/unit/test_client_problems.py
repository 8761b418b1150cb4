"""Answers that are errors become the domain's classes."""

from datetime import UTC, datetime

import httpx
import pytest

from app.client.problems import check, succeeded, translated
from app.domain.errors import (
    DatasetUnfit,
    DeadlineExceeded,
    JobFailure,
    ModelNotReady,
    NotFound,
    OctetError,
    SignatureMismatch,
    ToolchainFailed,
    Unavailable,
    UploadUnreadable,
    tree,
)
from app.domain.jobs import Job, JobError, JobKind, JobState

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def answer(status: int, *, json: object = None, text: str | None = None) -> httpx.Response:
    request = httpx.Request("GET", "http://127.0.0.1/v1/models/x")
    return (
        httpx.Response(status, json=json, request=request)
        if text is None
        else httpx.Response(status, text=text, request=request)
    )


@pytest.mark.parametrize("expected", tree(), ids=lambda error: error.code)
def test_every_code_comes_back_as_its_class(expected: type[OctetError]) -> None:
    problem = {"status": 422, "detail": "This and that.", "code": expected.code, "title": "T", "type": "about:blank"}
    with pytest.raises(expected, match=r"This and that\.") as raised:
        check(answer(422, json=problem))
    assert type(raised.value) is expected


def test_the_request_id_is_a_note_of_the_error() -> None:
    with pytest.raises(NotFound) as raised:
        check(answer(404, json={"detail": "No.", "code": "not_found", "request_id": "r-17"}))
    assert raised.value.__notes__ == ["request id: r-17"]


def test_a_code_of_a_newer_service_becomes_its_status_family() -> None:
    with pytest.raises(Unavailable, match=r"Later\."):
        check(answer(503, json={"detail": "Later.", "code": "too_new_to_know"}))


def test_a_page_of_a_proxy_is_an_error_that_names_the_status() -> None:
    with pytest.raises(OctetError, match="answered 500"):
        check(answer(500, text="<html>oops</html>"))


def test_a_success_is_no_error() -> None:
    check(answer(206, text="part"))


def test_a_refused_connection_says_where_octet_was_expected() -> None:
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1"), translated("http://127.0.0.1:1"):
        raise httpx.ConnectError("refused")


def test_a_slow_answer_is_a_missed_deadline() -> None:
    with pytest.raises(DeadlineExceeded), translated("http://127.0.0.1:1"):
        raise httpx.ReadTimeout("slow")


def job(state: JobState, error: JobError | None = None) -> Job:
    return Job(id="0" * 32, kind=JobKind.QUANTIZE, created_at=NOW, state=state, error=error)


def test_a_failed_job_raises_the_class_that_its_code_names() -> None:
    with pytest.raises(ToolchainFailed, match="boom"):
        succeeded(job(JobState.FAILED, JobError(code="toolchain_failed", message="boom")))


@pytest.mark.parametrize("expected", [SignatureMismatch, UploadUnreadable, ModelNotReady, DatasetUnfit])
def test_a_job_may_fail_for_any_reason_that_octet_knows(expected: type[OctetError]) -> None:
    with pytest.raises(expected, match="because"):
        succeeded(job(JobState.FAILED, JobError(code=expected.code, message="because")))


def test_a_cancelled_job_has_no_outcome() -> None:
    with pytest.raises(JobFailure, match="cancelled"):
        succeeded(job(JobState.CANCELLED))


def test_a_job_that_succeeded_is_returned() -> None:
    done = job(JobState.SUCCEEDED)
    assert succeeded(done) is done
