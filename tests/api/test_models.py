"""Models: upload and look up."""

import logging
from pathlib import Path

import pytest

from tests.api.harness import Api, fail_import, job_of, publish_model


def test_an_upload_is_stored_and_gets_an_import_job(api: Api) -> None:
    answer = api.client.post("/v1/models", data={"name": "net"}, files={"file": ("my net.pt2", b"12345")})
    assert answer.status_code == 201
    assert answer.headers["location"] == "/v1/models/net:1"
    assert (answer.json()["state"], answer.json()["size_bytes"]) == ("importing", 5)
    job = job_of(api, answer.json()["import_job"])
    assert (job.subject, job.model, job.state) == ("model", "net:1", "queued")
    assert "models/net/1/upload/my_net.pt2" in api.stored()


def test_a_raw_body_is_an_upload_too(api: Api) -> None:
    query = {"filename": "Some Net.onnx", "preprocessing": '{"resize": 32}'}
    answer = api.client.post("/v1/models", params=query, content=b"12345")
    assert answer.status_code == 201
    assert (answer.json()["name"], answer.json()["file"]) == ("some-net", "Some_Net.onnx")
    entry = api.do(lambda services: services.models.get("some-net", 1))
    assert entry.upload.preprocessing is not None
    assert entry.upload.preprocessing.resize == 32


@pytest.mark.parametrize(
    ("filename", "stored"),
    [("../../etc/passwd", "passwd"), ("C:\\nets\\a.onnx", "a.onnx"), (".hidden", "hidden"), ("x" * 300 + ".pt2", None)],
)
def test_a_file_name_becomes_a_plain_one(api: Api, filename: str, stored: str | None) -> None:
    answer = api.client.post("/v1/models", params={"name": "net", "filename": filename}, content=b"1")
    file = answer.json()["file"]
    assert file == stored or (stored is None and len(file) <= 100 and file.endswith(".pt2"))


def test_a_damaged_record_hides_itself_alone(api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_model(api, tmp_path, name="whole")
    publish_model(api, tmp_path, name="damaged")
    (api.store_folder / "models" / "damaged" / "1" / "upload.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        listed = api.client.get("/v1/models").json()["models"]
    assert [model["name"] for model in listed] == ["whole"]
    assert "models/damaged/1/upload.json" in caplog.text
    answer = api.client.get("/v1/models/damaged:1")
    assert (answer.status_code, answer.json()["code"]) == (503, "record_unreadable")


def test_two_uploads_of_one_name_get_two_versions(api: Api) -> None:
    assert [api.upload_model()["version"], api.upload_model()["version"]] == [1, 2]


def test_an_upload_over_the_limit_leaves_nothing(api: Api) -> None:
    answer = api.client.post("/v1/models", params={"name": "net"}, content=iter([b"x" * 50_000] * 5))
    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")
    assert api.stored() == []
    assert api.client.get("/v1/jobs").json() == {"jobs": []}


def test_an_upload_that_announces_too_much_is_refused_unread(api: Api) -> None:
    answer = api.client.post("/v1/models", params={"name": "net"}, content=b"x" * 200_001)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert api.stored() == []


def test_an_empty_upload_leaves_nothing(api: Api) -> None:
    answer = api.client.post("/v1/models", data={"name": "net"}, files={"file": ("net.onnx", b"")})
    assert (answer.status_code, answer.json()["code"]) == (422, "empty_upload")
    assert api.stored() == []


def test_text_behind_the_file_is_refused_and_leaves_nothing(api: Api) -> None:
    form = [("file", ("net.onnx", b"12345")), ("name", (None, b"net"))]
    answer = api.client.post("/v1/models", files=form)
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert "text fields before files" in answer.json()["detail"]
    assert api.stored() == []


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ([("colour", (None, b"red")), ("file", ("a.onnx", b"1"))], "unknown field 'colour'"),
        ([("name", (None, b"a")), ("name", (None, b"b")), ("file", ("a.onnx", b"1"))], "twice"),
        ([("name", (None, b"net"))], "no file"),
        ([("name", (None, b"Not A Name")), ("file", ("a.onnx", b"1"))], "not usable"),
        ([("preprocessing", (None, b'{"size": 1}')), ("file", ("a.onnx", b"1"))], "unknown field 'size'"),
    ],
)
def test_a_form_that_is_not_understood_is_refused(api: Api, form: list[tuple[str, object]], words: str) -> None:
    answer = api.client.post("/v1/models", files=form)  # type: ignore[arg-type]
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert api.stored() == []


def test_unknown_query_parameters_are_refused(api: Api) -> None:
    for answer in (api.client.post("/v1/models?nam=net", content=b"1"), api.client.get("/v1/models?limit=3")):
        assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
        assert "unknown parameter" in answer.json()["detail"]


def test_a_name_means_the_newest_ready_version(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    api.upload_model()
    assert api.client.get("/v1/models/net").json()["version"] == 1
    assert api.client.get("/v1/models/net:2").json()["state"] == "importing"
    assert [model["version"] for model in api.client.get("/v1/models").json()["models"]] == [2]


def test_a_ready_model_shows_its_signature(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    manifest = api.client.get("/v1/models/net").json()["manifest"]
    assert manifest["signature"]["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": [None, 3, 8, 8], "batch_axis": 0}
    ]


def test_a_failed_model_says_why(api: Api) -> None:
    api.upload_model()
    fail_import(api, "net", 1)
    answer = api.client.get("/v1/models/net").json()
    assert answer["state"] == "failed"
    assert answer["error"] == {"code": "upload_unreadable", "message": "It is broken."}


@pytest.mark.parametrize(
    ("path", "status"), [("nothing", 404), ("Not%20A%20Name", 422), ("net@int8", 422), ("a:0", 422)]
)
def test_a_model_that_is_not_there_is_said_so(api: Api, path: str, status: int) -> None:
    assert api.client.get(f"/v1/models/{path}").status_code == status


def test_an_unrouted_model_answers_with_the_newest_float32(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    routing = api.client.get("/v1/models/net/routing").json()
    assert (routing["current"]["number"], routing["current"]["variant"], routing["history"]) == (0, "float32", [])


def test_a_route_is_kept_with_its_history(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    for number in (1, 2):
        answer = api.client.put("/v1/models/net/routing", json={"variant": "float32", "version": 1})
        assert (answer.status_code, answer.json()["number"]) == (200, number)
    assert len(api.client.get("/v1/models/net/routing").json()["history"]) == 2


def test_a_route_to_an_unknown_variant_is_refused(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    answer = api.client.put("/v1/models/net/routing", json={"variant": "int8", "version": 1})
    assert (answer.status_code, answer.json()["code"]) == (404, "variant_not_found")
    answer = api.client.put("/v1/models/net/routing", json={"variant": "int8", "version": 1, "share": 0.5})
    assert (answer.status_code, "share" in answer.json()["detail"]) == (422, True)


def test_nothing_is_uploaded_while_redis_is_down(api_without_redis: Api) -> None:
    answer = api_without_redis.client.post("/v1/models", params={"name": "net"}, content=b"12345")
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert api_without_redis.stored() == []
