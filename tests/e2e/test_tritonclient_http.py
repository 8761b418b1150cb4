"""NVIDIA's own HTTP client against a running Octet: what speaks to Triton speaks to Octet."""

import io
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tritonclient.http as triton
from onnx import TensorProto
from PIL import Image
from tritonclient.utils import InferenceServerException

from app.client import Octet
from app.domain.preprocessing import ImagePreprocessing
from tests import graphs
from tests.running import Service, wait_until
from tests.sixteen_bits import doubler

SIDE = 16
ROWS = graphs.rows(2, side=SIDE)
PREPROCESSING = ImagePreprocessing(resize=20, crop=SIDE)

Array = npt.NDArray[Any]


class Client(triton.InferenceServerClient):  # type: ignore[misc]
    """The real client. Its fixture closes it; collected in another thread, it would wake gevent there once more."""

    def __del__(self) -> None:
        return


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    with Client(service.url.removeprefix("http://"), concurrency=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(octet: Octet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small classifier that takes images too."""
    path = tmp_path_factory.mktemp("triton") / "classifier.onnx"
    onnx.save(graphs.conv_classifier(side=SIDE), str(path))
    name = f"triton-{secrets.token_hex(4)}"
    octet.upload_model(path, name=name, preprocessing=PREPROCESSING)
    octet.wait_model(name)
    return name


@pytest.fixture(scope="module")
def expected(octet: Octet, model: str) -> Array:
    return octet.predict(model, ROWS).output


def asked(array: Array, datatype: str = "FP32", *, binary: bool = True) -> list[triton.InferInput]:
    made = triton.InferInput("x", list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return [made]


def wanted(*, binary: bool = True, classes: int = 0) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput("logits", binary_data=binary, class_count=classes)]


def test_health_and_metadata(client: triton.InferenceServerClient, model: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert client.is_model_ready(f"{model}:1@float32")
    assert not client.is_model_ready("nothing")
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(client.get_server_metadata()["extensions"])
    for name, version in ((model, ""), (model, "1"), (f"{model}@float32", "")):
        metadata = client.get_model_metadata(name, version)
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, SIDE, SIDE]}]
        assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_inference_in_binary_and_in_json(
    client: triton.InferenceServerClient, model: str, expected: Array, *, binary_in: bool, binary_out: bool
) -> None:
    answer = client.infer(model, asked(ROWS, binary=binary_in), outputs=wanted(binary=binary_out), request_id="42")
    assert np.allclose(answer.as_numpy("logits"), expected, atol=1e-6)
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("42", model, "1")
    assert response["parameters"]["octet_variant"] == "float32"


def test_without_outputs_all_come_in_binary(client: triton.InferenceServerClient, model: str, expected: Array) -> None:
    answer = client.infer(f"{model}@float32", asked(ROWS), model_version="1", priority=1, timeout=30_000_000)
    assert np.allclose(answer.as_numpy("logits"), expected, atol=1e-6)
    assert "binary_data_size" in answer.get_output("logits")["parameters"]


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_both_ways_may_be_packed(
    client: triton.InferenceServerClient,
    model: str,
    expected: Array,
    request_coding: str | None,
    response_coding: str | None,
) -> None:
    answer = client.infer(
        model,
        asked(np.concatenate([ROWS] * 50)),
        outputs=wanted(),
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    assert np.allclose(answer.as_numpy("logits")[:2], expected, atol=1e-6)


def test_the_best_classes_are_named(client: triton.InferenceServerClient, model: str, expected: Array) -> None:
    best = client.infer(model, asked(ROWS), outputs=wanted(classes=2)).as_numpy("logits")
    assert best.shape == (2, 2)
    score, index = best[0, 0].decode().split(":")[:2]
    assert int(index) == expected[0].argmax()
    assert float(score) == pytest.approx(expected[0].max(), abs=1e-5)


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 30, 3), np.uint8)).save(stream, "png")
    return stream.getvalue()


def test_bytes_are_images(client: triton.InferenceServerClient, octet: Octet, model: str) -> None:
    pictures = [picture(1), picture(2)]
    images = np.array(pictures, dtype=np.object_)
    found = client.infer(model, asked(images, "BYTES")).as_numpy("logits")
    one_by_one = np.concatenate([octet.predict(model, each).output for each in pictures])
    assert np.allclose(found, one_by_one, atol=1e-5)
    column = client.infer(model, asked(images.reshape(2, 1), "BYTES")).as_numpy("logits")
    assert np.allclose(column, one_by_one, atol=1e-5)


def test_an_image_in_json_is_refused_with_a_sentence(client: triton.InferenceServerClient, model: str) -> None:
    with pytest.raises(InferenceServerException, match="binary_data_size"):
        client.infer(model, asked(np.array([b"image"], dtype=np.object_), "BYTES", binary=False))


def test_numbers_of_16_bits(client: triton.InferenceServerClient, octet: Octet, tmp_path: Path) -> None:
    name, path = f"fp16-{secrets.token_hex(4)}", tmp_path / "doubler.onnx"
    onnx.save(doubler(TensorProto.FLOAT16), str(path))
    octet.upload_model(path, name=name)
    octet.wait_model(name)
    values = np.array([[0.5, -1.5, 3.0, 2.0**-8]], np.float16)
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
        answer = client.infer(name, asked(values, "FP16", binary=binary), outputs=outputs)
        assert answer.get_output("y")["datatype"] == "FP16"
        assert answer.as_numpy("y").tolist() == (2 * values).tolist()


def states(client: triton.InferenceServerClient, model: str) -> list[str]:
    return [entry["state"] for entry in client.get_model_repository_index() if entry["name"] == model]


def test_the_repository_loads_and_unloads(client: triton.InferenceServerClient, model: str) -> None:
    client.load_model(model)
    assert states(client, model) == ["READY"]
    client.unload_model(f"{model}:1@float32")
    assert states(client, model) == ["UNAVAILABLE"]
    client.load_model(f"{model}@float32")
    with pytest.raises(InferenceServerException, match="nothing"):
        client.load_model("nothing")


def test_statistics_count_rows_and_runs(client: triton.InferenceServerClient, model: str) -> None:
    def counted() -> tuple[int, int]:
        (entry,) = client.get_inference_statistics(model, "1")["model_stats"]
        return entry["inference_count"], entry["inference_stats"]["success"]["count"]

    client.load_model(model)
    rows, requests = counted()
    for _ in range(3):
        client.infer(model, asked(ROWS))
    wait_until(lambda: counted() == (rows + 6, requests + 3), what="the runners are asked again")
    assert model in {entry["name"] for entry in client.get_inference_statistics()["model_stats"]}


def test_many_requests_at_once_are_each_answered_rightly(client: triton.InferenceServerClient, model: str) -> None:
    x = graphs.rows(32, side=SIDE, seed=3)
    whole = client.infer(model, asked(x)).as_numpy("logits")
    sent = [client.async_infer(model, asked(row[None])) for row in x]
    for row, answer in zip(whole, sent, strict=True):
        assert np.allclose(answer.get_result().as_numpy("logits")[0], row, atol=1e-5)


def test_what_does_not_fit_is_said_in_words(client: triton.InferenceServerClient, model: str) -> None:
    with pytest.raises(InferenceServerException, match="the model takes float32"):
        client.infer(model, asked(ROWS[:, :2].copy()))
    other = triton.InferInput("y", [1], "FP32")
    other.set_data_from_numpy(np.zeros(1, np.float32))
    with pytest.raises(InferenceServerException, match="no input 'y'"):
        client.infer(model, [other])


def test_raw_bytes_are_one_tensor(client: triton.InferenceServerClient, model: str, expected: Array) -> None:
    body, headers = ROWS.tobytes(), {"Inference-Header-Content-Length": "0"}
    answer = client._post(f"v2/models/{model}/infer", body, headers, None)
    found = triton.InferResult(answer, verbose=False).as_numpy("logits")
    assert np.allclose(found, expected, atol=1e-6)
    assert struct.calcsize("<f") * found.size == expected.nbytes
