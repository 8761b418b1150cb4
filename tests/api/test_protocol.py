"""The Open Inference Protocol through a real runner, in JSON and in binary. One application serves the module."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from onnx import TensorProto
from PIL import Image

from app.domain.preprocessing import ImagePreprocessing
from tests.api.harness import Api, publish_model, running_api
from tests.graphs import rows
from tests.sixteen_bits import doubler

ROWS = rows(2)
LENGTH = "Inference-Header-Content-Length"
Members = dict[str, Any]
X = {"name": "x", "datatype": "FP32", "shape": [2, 3, 8, 8]}
BINARY = X | {"parameters": {"binary_data_size": ROWS.nbytes}}
ALL_BINARY: Members = {"parameters": {"binary_data_output": True}}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application without Redis, with `net`, and `eye` that takes images."""
    folder = tmp_path_factory.mktemp("protocol")
    nowhere = f"unix://{folder}/nobody-listens.sock"
    limits = {"max_predict_bytes": 100_000, "max_json_bytes": 50_000, "max_batch_size": 8, "max_loaded_variants": 2}
    with running_api(folder / "data", redis_url=nowhere, **limits) as running:
        publish_model(running, folder, name="net")
        publish_model(running, folder, name="eye", preprocessing=ImagePreprocessing(resize=8, crop=8))
        yield running


def infer(serving: Api, tensor: Members, *, model: str = "net", more: Members | None = None) -> httpx.Response:
    asked = X | {"data": ROWS.tolist()} | tensor
    return serving.client.post(f"/v2/models/{model}/infer", json={"inputs": [asked]} | (more or {}))


def send(
    serving: Api, tensor: Members, *, rest: bytes, model: str = "net", more: Members | None = None
) -> httpx.Response:
    header = orjson.dumps({"inputs": [tensor]} | (more or {}))
    return post(serving, header + rest, model=model, headers={LENGTH: str(len(header))})


def post(serving: Api, body: bytes, *, headers: dict[str, str], model: str = "net") -> httpx.Response:
    return serving.client.post(f"/v2/models/{model}/infer", content=body, headers=headers)


def parts(answer: httpx.Response) -> tuple[Members, bytes]:
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH])
    return orjson.loads(answer.content[:length]), answer.content[length:]


@pytest.fixture(scope="module")
def expected(serving: Api) -> list[float]:
    """The answer to `ROWS`, flat."""
    return list(infer(serving, {}).json()["outputs"][0]["data"])


def test_the_protocol_infers_flat_and_nested(serving: Api, expected: list[float]) -> None:
    for data in (ROWS.tolist(), ROWS.reshape(-1).tolist()):
        answer = infer(serving, {"data": data}, more={"id": "42"}).json()
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("net", "1", "42")
        output = answer["outputs"][0]
        assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [2, 4])
        assert output["data"] == expected


def test_an_answer_says_who_gave_it_and_how_long_it_took(serving: Api) -> None:
    answer = infer(serving, {}, model="net:1@float32")
    said = answer.json()["parameters"]
    assert said["octet_variant"] == answer.headers["octet-variant"] == "float32"
    assert answer.headers["octet-version"] == "1"
    assert said["octet_compute_ms"] == float(answer.headers["octet-compute-ms"]) > 0
    assert said["octet_queue_ms"] == float(answer.headers["octet-queue-ms"])


@pytest.mark.parametrize(
    "more", [ALL_BINARY, {"outputs": [{"name": "logits", "parameters": {"binary_data": True}}], "id": "7"}]
)
def test_tensors_come_and_go_as_bytes(serving: Api, expected: list[float], more: Members) -> None:
    answer = send(serving, BINARY, rest=ROWS.tobytes(), more=more)
    header, rest = parts(answer)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert header.get("id") == more.get("id")
    assert header["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": 32}}
    ]
    assert np.frombuffer(rest, np.float32).tolist() == np.array(expected, np.float32).tolist()


def test_an_output_may_come_in_json_although_its_input_came_in_bytes(serving: Api, expected: list[float]) -> None:
    json_alone = {"outputs": [{"name": "logits", "parameters": {"binary_data": False}}], **ALL_BINARY}
    for more in ({}, json_alone):
        answer = send(serving, BINARY, rest=ROWS.tobytes(), more=more)
        assert LENGTH not in answer.headers
        assert answer.json()["outputs"][0]["data"] == expected


def test_a_raw_body_is_answered_in_bytes(serving: Api, expected: list[float]) -> None:
    _, rest = parts(post(serving, ROWS.tobytes(), headers={LENGTH: "0"}))
    assert np.frombuffer(rest, np.float32).tolist() == np.array(expected, np.float32).tolist()


def test_the_best_classes_come_as_strings(serving: Api, expected: list[float]) -> None:
    best = int(np.argmax(expected[:4]))
    asked = [{"name": "logits", "parameters": {"classification": 2}}]
    output = infer(serving, {}, more={"outputs": asked}).json()["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"][0].split(":")[:2] == [f"{expected[best]:f}", str(best)]
    header, rest = parts(infer(serving, {}, more={"outputs": asked} | ALL_BINARY))
    assert header["outputs"][0]["parameters"] == {"binary_data_size": len(rest)}
    assert rest.startswith(struct.pack("<I", len(output["data"][0])) + output["data"][0].encode())


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(stream, "png")
    return stream.getvalue()


def test_images_and_pixels_go_through_the_models_preprocessing(serving: Api) -> None:
    encoded = [picture(seed) for seed in range(3)]
    section = b"".join(struct.pack("<I", len(one)) + one for one in encoded)
    images = {"name": "x", "datatype": "BYTES", "shape": [3, 1], "parameters": {"binary_data_size": len(section)}}
    by_image = send(serving, images, rest=section, model="eye").json()["outputs"][0]
    assert by_image["shape"] == [3, 4]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in encoded])
    decoded = {
        "name": "x",
        "datatype": "UINT8",
        "shape": [3, 8, 8, 3],
        "parameters": {"binary_data_size": pixels.nbytes},
    }
    by_pixels = send(serving, decoded, rest=pixels.tobytes(), model="eye").json()["outputs"][0]
    assert np.allclose(by_pixels["data"], by_image["data"], atol=1e-5)
    refused = send(serving, images, rest=section)
    assert (refused.status_code, refused.json()["code"]) == (422, "request_invalid")


@pytest.mark.parametrize(("datatype", "kind"), [("FP16", TensorProto.FLOAT16), ("BF16", TensorProto.BFLOAT16)])
def test_numbers_of_16_bits_come_and_go(serving: Api, tmp_path: Path, datatype: str, kind: int) -> None:
    publish_model(serving, tmp_path, name=datatype.lower(), graph=doubler(kind))
    values = np.array([[0.5, -1.5, 3.0, 2.0**-8]], np.float32)
    section = values.astype(np.float16).tobytes() if datatype == "FP16" else values.view(np.uint16)[:, 1::2].tobytes()
    given = {"name": "x", "datatype": datatype, "shape": [1, 4]}
    binary = given | {"parameters": {"binary_data_size": len(section)}}
    header, rest = parts(send(serving, binary, rest=section, model=datatype.lower(), more=ALL_BINARY))
    assert header["outputs"][0]["datatype"] == datatype
    doubled = np.frombuffer(rest, np.float16 if datatype == "FP16" else np.uint16)
    numbers = doubled if datatype == "FP16" else (doubled.astype(np.uint32) << 16).view(np.float32)
    assert numbers.tolist() == (2 * values[0]).tolist()
    in_json = infer(serving, given | {"data": values.tolist()}, model=datatype.lower())
    assert in_json.json()["outputs"][0]["data"] == (2 * values[0]).tolist()


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_requests_are_read_and_long_answers_packed(
    serving: Api, expected: list[float], coding: str, pack: Callable[[bytes], bytes]
) -> None:
    header = orjson.dumps({"inputs": [BINARY]})
    packed = {"Content-Encoding": coding, LENGTH: str(len(header)), "Accept-Encoding": coding}
    answer = post(serving, pack(header + ROWS.tobytes()), headers=packed)
    assert answer.json()["outputs"][0]["data"] == expected
    assert "content-encoding" not in answer.headers  # too short to be worth it
    header = orjson.dumps({"inputs": [BINARY], "id": "x" * 2000})
    wide = post(serving, pack(header + ROWS.tobytes()), headers=packed | {LENGTH: str(len(header))})
    assert wide.headers["content-encoding"] == coding
    assert wide.json()["id"] == "x" * 2000


@pytest.mark.parametrize(
    ("tensor", "more", "code"),
    [
        ({"datatype": "INT8"}, {}, "signature_mismatch"),
        ({"shape": [2, 3, 8, 9]}, {}, "signature_mismatch"),
        ({"shape": [3, 2, 8, 8]}, {}, "signature_mismatch"),
        ({"name": "y"}, {}, "signature_mismatch"),
        ({}, {"outputs": [{"name": "y"}]}, "signature_mismatch"),
        ({}, {"outputs": [{"name": "logits", "parameters": {"classification": 0}}]}, "request_invalid"),
        ({}, {"parameters": {"priority": "high"}}, "request_invalid"),
        ({"colour": 1}, {}, "request_invalid"),
    ],
)
def test_the_protocol_says_what_does_not_fit(serving: Api, tensor: Members, more: Members, code: str) -> None:
    answer = infer(serving, tensor, more=more)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert isinstance(answer.json()["error"], str)


def test_binary_bodies_that_do_not_fit_are_refused_and_the_connection_lives_on(
    serving: Api, expected: list[float]
) -> None:
    whole = orjson.dumps({"inputs": [BINARY]})
    wrong: list[tuple[bytes, str, int]] = [
        (whole + ROWS.tobytes()[:-1], str(len(whole)), 422),
        (whole + ROWS.tobytes() + b"x", str(len(whole)), 422),
        (whole, "100000", 422),
        (whole, "-1", 422),
        (whole, "one", 422),
        (b"[" * 2000, "2000", 422),
        (ROWS.tobytes()[:-1], "0", 422),
        (b"x" * 100_001, "0", 413),
        (b" " * 60_000, "60000", 413),
    ]
    for body, length, status in wrong:
        answer = post(serving, body, headers={LENGTH: length})
        assert answer.status_code == status, answer.text
        assert isinstance(answer.json()["error"], str)
    assert infer(serving, {}).json()["outputs"][0]["data"] == expected


def test_unknown_parameters_are_taken_and_ignored(serving: Api, expected: list[float]) -> None:
    more = {"parameters": {"colour": "red", "priority": 3, "timeout": 30_000_000}}
    tensor = {"parameters": {"colour": ["red"]}}
    assert infer(serving, tensor, more=more).json()["outputs"][0]["data"] == expected


def test_the_protocol_describes_server_and_models(serving: Api) -> None:
    get = serving.client.get
    assert get("/v2").json()["name"] == "octet"
    assert "binary_tensor_data" in get("/v2").json()["extensions"]
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    for path in ("net", "net@float32", "net:1@float32", "net/versions/1", "net@float32/versions/1"):
        metadata = get(f"/v2/models/{path}").json()
        assert metadata["versions"] == ["1"]
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
        assert get(f"/v2/models/{path}/ready").json() == {"name": "net", "ready": True}
    assert get("/v2/models/net/versions/2").status_code == 404
    assert get("/v2/models/net/versions/one").status_code == 422
    assert get("/v2/models/net:1/versions/2").status_code == 422
    assert get("/v2/models/nothing/ready").status_code == 404
    for model in ("net/versions/1", "net:1", "net:1@float32"):
        assert infer(serving, {}, model=model).status_code == 200
