"""Models: upload and look up."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from app.catalogue.records import from_json, to_json
from app.client import Octet
from app.domain.models import ModelManifest
from tests.api.harness import Api, fail_import, job_of, publish_model

ROUTING = "/v1/models/net/routing?load=false"


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
    for number, said in ((1, {}), (2, {"by": "ann", "note": "it is right"})):
        answer = api.client.put(ROUTING, json={"variant": "float32", "version": 1, **said})
        assert (answer.status_code, answer.json()["number"]) == (200, number)
    history = api.client.get("/v1/models/net/routing").json()["history"]
    assert [(route["by"], route["note"]) for route in history] == [("127.0.0.1", None), ("ann", "it is right")]


def test_a_route_by_weights_is_kept_as_it_was_given(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    answer = api.client.put(ROUTING, json={"version": 1, "weights": {"float32": 3}})
    assert (answer.status_code, answer.json()["variant"], answer.json()["weights"]) == (200, None, {"float32": 3})
    assert api.client.get("/v1/models/net/routing").json()["current"] == answer.json()


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({}, 422, "either 'variant' or 'weights'"),
        ({"variant": "float32", "weights": {"float32": 1}}, 422, "either 'variant' or 'weights'"),
        ({"weights": {"float32": 0}}, 422, "above 0"),
        ({"weights": {"float32": -1}}, 422, "from 0 to"),
        ({"weights": {"float32": "1"}}, 422, "valid number"),
        ({"weights": {"float32": 1, "int8": 0}}, 404, "no variant 'int8'"),
        ({"weights": {"../float32": 1}}, 422, "not usable"),
        ({"variant": "float32", "by": "a\nb"}, 422, "'by'"),
        ({"variant": "float32", "note": ""}, 422, "'note'"),
    ],
)
def test_a_route_that_makes_no_sense_is_refused(
    api: Api, tmp_path: Path, fields: dict[str, object], status: int, words: str
) -> None:
    publish_model(api, tmp_path)
    answer = api.client.put(ROUTING, json={"version": 1, **fields})
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
    assert api.client.get("/v1/models/net/routing").json()["history"] == []


@pytest.mark.parametrize("model", ["net:1", "net@int8", "net:1@int8"])
def test_routing_is_the_whole_model_s(api: Api, model: str) -> None:
    for answer in (
        api.client.get(f"/v1/models/{model}/routing"),
        api.client.put(f"/v1/models/{model}/routing", json={"variant": "float32", "version": 1}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "name_invalid")
        assert "write 'net'" in answer.json()["detail"]


def test_labels_come_as_a_list_or_as_lines(api: Api) -> None:
    for part in ((None, '["cat", "dog"]'), ("labels.txt", "\ufeffcat\r\ndog\r\n"), ("a.json", '["cat","dog"]')):
        form = [("name", (None, b"net")), ("labels", part), ("file", ("net.onnx", b"12345"))]
        answer = api.client.post("/v1/models", files=form)
        assert (answer.status_code, answer.json().get("labels")) == (201, ["cat", "dog"]), answer.text
    listed = api.client.get("/v1/models").json()["models"][0]
    assert (listed["label_count"], listed["labels"]) == (2, None)
    assert api.client.get("/v1/models/net:1").json()["labels"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("{}", "list of labels"),
        ("[1]", "list of labels"),
        ("cat", "JSON"),
        ("[]", "0 labels"),
        ('["a", ""]', "Label 1"),
        ('["a\\nb"]', "Label 0"),
        (f'["{"a" * 201}"]', "Label 0"),
        (str(["a"] * 100_001).replace("'", '"'), "100001 labels"),
        ("[" + " " * 2**22 + "]", "longer than"),
    ],
    ids=lambda value: value[:20],
)
def test_labels_that_cannot_be_are_refused_and_leave_nothing(api: Api, labels: str, words: str) -> None:
    form = [("labels", (None, labels.encode())), ("file", ("net.onnx", b"12345"))]
    answer = api.client.post("/v1/models", files=form)
    assert (answer.status_code, words in answer.json()["detail"]) == (422, True), answer.text
    assert api.stored() == []


def test_a_client_sends_labels_with_a_model(api: Api, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"12345")
    with Octet(str(api.client.base_url)) as octet:
        sent = octet.upload_model(tmp_path / "net.onnx", name="net", labels=("cat", "dog"))
        assert (sent.file, sent.labels, octet.models()[0].label_count) == ("net.onnx", ("cat", "dog"), 2)


def test_labels_of_a_one_shot_go_to_the_model(api: Api) -> None:
    form = [
        ("labels", ("labels.txt", b"cat\ndog")),
        ("model", ("net.onnx", b"12345")),
        ("calibration", ("rows.npz", b"12345")),
    ]
    assert api.client.post("/v1/quantize", files=form).status_code == 202
    assert api.client.get("/v1/models/net:1").json()["labels"] == ["cat", "dog"]


def test_an_imported_model_keeps_its_labels(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    manifest = api.do(lambda services: services.models.get("net", 1)).ready()
    named = replace(manifest, upload=replace(manifest.upload, labels=("cat", "dog")))
    assert from_json(ModelManifest, to_json(named), path="x").labels == ("cat", "dog")


def test_a_record_of_before_there_were_labels_is_still_read(api: Api) -> None:
    api.upload_model()
    record = api.store_folder / "models/net/1/upload.json"
    record.write_text(record.read_text().replace(',"labels":null', ""))
    assert "labels" not in record.read_text()
    assert api.client.get("/v1/models/net:1").json()["label_count"] is None


def test_a_route_to_an_unknown_variant_is_refused(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    answer = api.client.put(ROUTING, json={"variant": "int8", "version": 1})
    assert (answer.status_code, answer.json()["code"]) == (404, "variant_not_found")
    answer = api.client.put(ROUTING, json={"variant": "int8", "version": 1, "share": 0.5})
    assert (answer.status_code, "share" in answer.json()["detail"]) == (422, True)


def test_nothing_is_uploaded_while_redis_is_down(api_without_redis: Api) -> None:
    answer = api_without_redis.client.post("/v1/models", params={"name": "net"}, content=b"12345")
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert api_without_redis.stored() == []
