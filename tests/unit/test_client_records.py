"""What the API answers about uploads."""

from datetime import UTC, datetime

import pytest

from app.client.client import Octet
from app.client.records import ModelVersion, plain_file_name, ready
from app.client.transport import read_as
from app.domain.errors import ModelNotReady, NameInvalid, UploadUnreadable
from app.domain.jobs import JobError
from app.domain.models import ReadyState


def model(state: ReadyState, error: JobError | None = None) -> ModelVersion:
    return ModelVersion(
        name="m",
        version=3,
        state=state,
        error=error,
        file="m.onnx",
        size_bytes=10,
        sha256="0" * 64,
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        import_job="1" * 32,
        manifest=None,
    )


def test_an_upload_names_itself_with_its_version() -> None:
    assert model(ReadyState.READY).reference == "m:3"


def test_a_failed_import_raises_its_reason() -> None:
    error = JobError(code="upload_unreadable", message="It is no ONNX.")
    with pytest.raises(UploadUnreadable, match="no ONNX"):
        ready(model(ReadyState.FAILED, error))


def test_an_upload_that_is_still_imported_is_not_ready() -> None:
    with pytest.raises(ModelNotReady, match="importing"):
        ready(model(ReadyState.IMPORTING))


def test_members_that_this_client_does_not_know_are_passed_over() -> None:
    body = (
        b'{"name":"m","version":3,"state":"ready","error":null,"file":"m.onnx","size_bytes":10,"sha256":"00",'
        b'"created_at":"2026-01-02T00:00:00Z","import_job":"11","manifest":null,"of_a_newer_service":1}'
    )
    assert read_as(ModelVersion, body).state is ReadyState.READY


def test_an_artifact_gets_a_file_name_that_explains_itself() -> None:
    assert plain_file_name("resnet20:3@int8") == "resnet20-3-int8.onnx"


def test_a_reference_without_variant_is_refused_before_anything_is_sent() -> None:
    with Octet("http://127.0.0.1:1") as octet, pytest.raises(NameInvalid, match="names no variant"):
        octet.report("resnet20:3")


def test_a_name_that_would_leave_its_path_is_refused_before_anything_is_sent() -> None:
    with Octet("http://127.0.0.1:1") as octet, pytest.raises(NameInvalid):
        octet.model("../jobs")
