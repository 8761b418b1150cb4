"""Predictions through a real runner with `/predict`. One application serves the module."""

import base64
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import psutil
import pytest
from PIL import Image

from app.domain.preprocessing import ImagePreprocessing
from tests.api.harness import Api, publish_model, running_api
from tests.graphs import rows

PREDICT = "/v1/models/net/predict"
ROWS = rows(2)
NPY = {"Content-Type": "application/x-npy"}
NPZ = {"Content-Type": "application/x-npz"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application without Redis, with `net`, and `eye` that takes images."""
    folder = tmp_path_factory.mktemp("serving")
    nowhere = f"unix://{folder}/nobody-listens.sock"
    limits = {"max_predict_bytes": 100_000, "max_batch_size": 8, "max_loaded_variants": 2}
    with running_api(folder / "data", redis_url=nowhere, **limits) as running:
        publish_model(running, folder, name="net")
        publish_model(running, folder, name="eye", preprocessing=ImagePreprocessing(resize=8, crop=8))
        yield running


def npy(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # it takes a flag among the arrays
    return stream.getvalue()


def logits(answer: httpx.Response) -> list[list[float]]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["outputs"]["logits"]["data"])


@pytest.fixture(scope="module")
def expected(serving: Api) -> list[list[float]]:
    return logits(serving.client.post(PREDICT, content=npy(ROWS), headers=NPY))


def test_json_answers_say_who_answered_and_how_long_it_took(serving: Api, expected: list[list[float]]) -> None:
    answer = serving.client.post("/predict?model=net:1@float32", json={"inputs": {"x": ROWS.tolist()}})
    body = answer.json()
    assert (body["model"], body["version"], body["variant"]) == ("net", 1, "float32")
    assert (body["outputs"]["logits"]["dtype"], body["outputs"]["logits"]["shape"]) == ("float32", [2, 4])
    assert logits(answer) == expected
    assert answer.headers["octet-variant"] == "float32"
    assert float(answer.headers["octet-compute-ms"]) > 0


def test_every_way_to_send_a_tensor_gives_the_same_answer(serving: Api, expected: list[list[float]]) -> None:
    text = base64.b64encode(ROWS.tobytes()).decode()
    bodies: list[Any] = [
        ROWS.tolist(),
        {"inputs": ROWS.tolist()},
        {"model": "net", "variant": "float32", "inputs": {"x": ROWS.tolist()}},
        {"inputs": {"x": {"dtype": "float32", "shape": [2, 3, 8, 8], "base64": text}}},
    ]
    for body in bodies:
        assert logits(serving.client.post(PREDICT, json=body)) == expected
    for array in (np.asfortranarray(ROWS), ROWS.astype(">f4")):
        assert logits(serving.client.post(PREDICT, content=npy(array), headers=NPY)) == expected
    assert logits(serving.client.post(PREDICT, content=npz(x=ROWS), headers=NPZ)) == expected


def test_numpy_answers_are_given_when_asked_for(serving: Api, expected: list[list[float]]) -> None:
    answer = serving.client.post(PREDICT, content=npy(ROWS), headers=NPY | {"Accept": "application/x-npy"})
    assert np.load(io.BytesIO(answer.content)).tolist() == np.array(expected, np.float32).tolist()
    answer = serving.client.post(PREDICT, content=npz(x=ROWS), headers=NPZ | {"Accept": "application/x-npz"})
    assert np.load(io.BytesIO(answer.content))["logits"].shape == (2, 4)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_an_image_is_predicted_on(serving: Api, kind: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (20, 12), (200, 10, 30)).save(stream, kind)
    answer = serving.client.post(
        "/v1/models/eye/predict", content=stream.getvalue(), headers={"Content-Type": f"image/{kind}"}
    )
    assert len(logits(answer)) == 1


def test_long_json_is_answered_as_short_json_is(serving: Api, expected: list[list[float]]) -> None:
    padding = b" " * 20_000
    for body in (ROWS.tolist(), {"inputs": {"x": ROWS.tolist()}}):
        answer = serving.client.post(PREDICT, content=orjson.dumps(body) + padding, headers=JSON)
        assert logits(answer) == expected
    answer = serving.client.post(PREDICT, content=orjson.dumps([*ROWS.tolist(), 1.0]) + padding, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (422, "signature_mismatch")


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_bodies_and_answers_are_taken_and_given(
    serving: Api, expected: list[list[float]], coding: str, pack: Callable[[bytes], bytes]
) -> None:
    packed = NPY | {"Content-Encoding": coding, "Accept-Encoding": coding}
    many = np.concatenate([ROWS] * 4)
    answer = serving.client.post(PREDICT, content=pack(npy(many)), headers=packed)
    assert logits(answer)[:2] == expected
    bomb = serving.client.post(PREDICT, content=pack(bytes(100_001)), headers=packed)
    assert (bomb.status_code, bomb.json()["code"]) == (413, "upload_too_large")


def test_a_body_packed_in_another_way_is_refused(serving: Api) -> None:
    for coding in ("br", "gzip, gzip"):
        answer = serving.client.post(PREDICT, content=npy(ROWS), headers=NPY | {"Content-Encoding": coding})
        assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_format")
    answer = serving.client.post(PREDICT, content=npy(ROWS), headers=NPY | {"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


def test_pixels_are_answered_as_the_image_is(serving: Api) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    eye = "/v1/models/eye/predict"
    by_image = logits(serving.client.post(eye, content=png.getvalue(), headers={"Content-Type": "image/png"}))
    by_pixels = logits(serving.client.post(eye, content=npy(pixels[None]), headers=NPY))
    text = base64.b64encode(pixels.tobytes()).decode()
    by_base64 = logits(
        serving.client.post(eye, json={"inputs": {"x": {"dtype": "uint8", "shape": [1, 8, 8, 3], "base64": text}}})
    )
    assert np.allclose(by_pixels, by_image, atol=1e-5)
    assert by_base64 == by_pixels


def test_whole_numbers_may_stand_for_floats(serving: Api) -> None:
    assert len(logits(serving.client.post(PREDICT, json=np.ones((1, 3, 8, 8), int).tolist()))) == 1


WRONG_JSON: list[tuple[Any, str]] = [
    ({"inputs": {"y": [[1.0]]}}, "signature_mismatch"),
    ({"inputs": {"x": [[1.0, 2.0], [3.0]]}}, "signature_mismatch"),
    ({"inputs": {"x": [["a"]]}}, "signature_mismatch"),
    ({"inputs": {"x": [[None]]}}, "signature_mismatch"),
    ({"inputs": {"x": [[True]]}}, "signature_mismatch"),
    ({"inputs": {"x": [[1.0]]}}, "signature_mismatch"),
    ({"inputs": {"x": []}}, "signature_mismatch"),
    ({"inputs": {"x": np.full((1, 3, 8, 8), 1e39).tolist()}}, "signature_mismatch"),
    ({"inputs": {}}, "signature_mismatch"),
    ({"inputs": "x"}, "signature_mismatch"),
    ({"inputs": {"x": {"dtype": "float32", "shape": [1], "base64": "AAAA"}}}, "signature_mismatch"),
    ({"inputs": {"x": {"dtype": "complex64", "shape": [1], "base64": "AAAA"}}}, "signature_mismatch"),
    ({"inputs": {"x": {"dtype": "float32", "shape": [1], "base64": "?"}}}, "request_invalid"),
    ({"inputs": {"x": {"dtype": "float32", "shape": [-1], "base64": "AAAA"}}}, "signature_mismatch"),
    ({"inputs": {"x": {"dtype": "float32", "shape": [1]}}}, "request_invalid"),
    ({"colour": 1, "inputs": []}, "request_invalid"),
    ({}, "request_invalid"),
    ({"model": 3, "inputs": []}, "request_invalid"),
    ({"model": "other", "inputs": []}, "request_invalid"),
]


@pytest.mark.parametrize(("body", "code"), WRONG_JSON)
def test_json_that_does_not_fit_is_refused(serving: Api, body: Any, code: str) -> None:
    answer = serving.client.post(PREDICT, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


@pytest.mark.parametrize("body", [b"{", b"[NaN]", b"[" * 50_000 + b"]" * 50_000, b"[" * 500 + b"]" * 500, b""])
def test_json_that_cannot_be_read_is_refused(serving: Api, body: bytes) -> None:
    assert serving.client.post(PREDICT, content=body, headers=JSON).status_code == 422


def test_arrays_that_do_not_fit_are_refused(serving: Api) -> None:
    wrong = [npy(ROWS.astype(np.float64)), npy(ROWS[:, :2]), npy(ROWS[:0]), npy(ROWS)[:-4], npy(ROWS) + b"xxxx"]
    for body in wrong:
        answer = serving.client.post(PREDICT, content=body, headers=NPY)
        assert (answer.status_code, answer.json()["code"]) == (422, "signature_mismatch")


def test_numpy_files_that_are_dangerous_are_refused(serving: Api) -> None:
    pickled = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    huge = npy(ROWS).replace(b"(2, 3, 8, 8)", b"(2, 999999999)")
    for body in (pickled, b"random bytes", b"", huge):
        assert serving.client.post(PREDICT, content=body, headers=NPY).status_code == 422
    assert serving.client.post(PREDICT, content=b"random bytes", headers=NPZ).json()["code"] == "request_invalid"
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(10_000_000))
    answer = serving.client.post(PREDICT, content=bomb.getvalue(), headers=NPZ)
    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")


def test_too_large_a_batch_and_too_large_a_body_are_refused(serving: Api) -> None:
    answer = serving.client.post(PREDICT, content=npy(rows(9)), headers=NPY)
    assert (answer.status_code, answer.json()["code"]) == (413, "batch_too_large")
    for body in (b"x" * 100_001, iter([b"x" * 60_000] * 2)):
        answer = serving.client.post(PREDICT, content=body, headers=NPY)
        assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")


def test_an_image_that_cannot_be_decoded_is_refused(serving: Api) -> None:
    png = {"Content-Type": "image/png"}
    answer = serving.client.post("/v1/models/eye/predict", content=b"no image", headers=png)
    assert (answer.status_code, answer.json()["code"]) == (422, "image_invalid")
    answer = serving.client.post(PREDICT, content=b"no image", headers=png)
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


def test_another_content_type_is_refused(serving: Api) -> None:
    answer = serving.client.post(PREDICT, content=b"a,b", headers={"Content-Type": "text/csv"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_format")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/predict?model=nothing", 404, "model_not_found"),
        ("/predict?model=net@int4", 404, "variant_not_found"),
        ("/predict?model=net&variant=int4", 404, "variant_not_found"),
        ("/predict?model=net:9", 404, "model_not_found"),
        ("/predict?model=net@a&variant=b", 422, "request_invalid"),
        ("/predict", 422, "request_invalid"),
        ("/predict?model=net&colour=red", 422, "request_invalid"),
        ("/predict?model=Not%20Valid", 422, "name_invalid"),
    ],
)
def test_a_variant_that_is_not_there_is_said_so(serving: Api, path: str, status: int, code: str) -> None:
    answer = serving.client.post(path, content=npy(ROWS), headers=NPY)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.usefixtures("expected")
def test_only_published_names_become_labels(serving: Api) -> None:
    serving.client.post("/predict?model=nobody-knows-me", content=npy(ROWS), headers=NPY)
    serving.client.post(PREDICT, content=npy(ROWS[:0]), headers=NPY)
    metrics = serving.client.get("/metrics").text
    labels = 'model="net",outcome="{}",variant="float32",version="1"'
    assert f"octet_request_duration_seconds_count{{{labels.format('ok')}}}" in metrics
    assert f"octet_request_duration_seconds_count{{{labels.format('invalid')}}}" in metrics
    assert 'octet_batch_size_count{model="net",variant="float32",version="1"}' in metrics
    assert "nobody-knows-me" not in metrics
    assert "octet_requests_in_flight 0.0" in metrics


def test_a_variant_is_loaded_and_unloaded(serving: Api) -> None:
    path = "/v1/models/net/variants/float32"
    assert serving.client.post(f"{path}/load").json() == {"state": "ready"}
    assert serving.client.post(f"{path}/unload").json() == {"state": "unloaded"}
    assert all(held.model != "net" for held in serving.do(lambda services: services.pool.held()))


def test_a_service_without_redis_is_ready_and_says_so(serving: Api) -> None:
    answer = serving.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ready", "checks": {"store": "ok", "queue": "unavailable"}},
    )


def test_an_answer_that_does_not_come_in_time_counts_as_a_timeout(tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/nobody-listens.sock"
    before = psutil.Process().children()
    with running_api(tmp_path / "data", redis_url=nowhere, predict_timeout_seconds=0.5) as api:
        publish_model(api, tmp_path, name="net")
        assert api.client.post("/v1/models/net/variants/float32/load").status_code == 200
        (runner,) = [child for child in psutil.Process().children() if child not in before]
        runner.suspend()
        try:
            answer = api.client.post(PREDICT, content=npy(ROWS), headers=NPY)
        finally:
            with suppress(psutil.NoSuchProcess):  # the gateway has killed it by now, or not yet
                runner.resume()
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        assert 'outcome="timeout",variant="float32",version="1"} 1.0' in api.client.get("/metrics").text
