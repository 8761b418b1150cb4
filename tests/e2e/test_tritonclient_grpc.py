"""The protocol's real client, NVIDIA's `tritonclient`, against a whole Octet, over gRPC."""

import io
import queue
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from app.client import Octet
from app.domain.preprocessing import ImagePreprocessing
from tests import graphs
from tests.e2e.conftest import SIDE, save_classifier
from tests.running import free_port, running_service

SECONDS = 60.0
X = graphs.rows(3, side=SIDE)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """An Octet of two gateway processes; where it speaks HTTP, and where gRPC."""
    port = free_port()
    settings = {"OCTET_GRPC_PORT": str(port), "OCTET_GATEWAY_PROCESSES": "2"}
    with running_service(tmp_path_factory.mktemp("grpc"), settings=settings) as service:
        yield service.url, f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def octet(address: tuple[str, str]) -> Iterator[Octet]:
    with Octet(address[0]) as client:
        yield client


@pytest.fixture(scope="module")
def model(octet: Octet, tmp_path_factory: pytest.TempPathFactory) -> str:
    name = f"net-{secrets.token_hex(4)}"
    octet.upload_model(save_classifier(tmp_path_factory.mktemp("model") / "net.onnx"), name=name)
    octet.wait_model(name)
    return name


@pytest.fixture
def client(address: tuple[str, str]) -> Iterator[Any]:
    with triton.InferenceServerClient(address[1]) as opened:
        yield opened


def inputs(array: Any = X, *, name: str = "x", datatype: str = "FP32") -> list[Any]:
    tensor = triton.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return [tensor]


def test_the_server_and_the_model_are_there(client: Any, model: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert client.is_model_ready(model, "1")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata().name == "octet"
    metadata = client.get_model_metadata(model)
    assert (metadata.inputs[0].datatype, list(metadata.inputs[0].shape)) == ("FP32", [-1, 3, SIDE, SIDE])


def test_its_answers_are_those_of_the_other_protocol(client: Any, octet: Octet, model: str) -> None:
    expected = octet.predict(model, X).output
    answer = client.infer(f"{model}@float32", inputs(), model_version="1", request_id="seven", priority=1)
    assert np.array_equal(answer.as_numpy("logits"), expected)
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == (model, "1", "seven")
    assert response.parameters["octet_variant"].string_param == "float32"


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_packed_messages_are_answered(client: Any, model: str, packed: str) -> None:
    answer = client.infer(model, inputs(), compression_algorithm=packed, client_timeout=SECONDS)
    assert answer.as_numpy("logits").shape == (3, 4)


def test_classes_come_as_text(client: Any, model: str) -> None:
    wanted = triton.InferRequestedOutput("logits", class_count=2)
    classes = client.infer(model, inputs(), outputs=[wanted]).as_numpy("logits")
    best = client.infer(model, inputs()).as_numpy("logits").argmax(1)
    assert [int(text.decode().split(":")[1]) for text in classes[:, 0]] == best.tolist()


def test_images_go_through_the_models_preprocessing(client: Any, octet: Octet, tmp_path: Path) -> None:
    name = f"eye-{secrets.token_hex(4)}"
    octet.upload_model(save_classifier(tmp_path / "eye.onnx"), name=name, preprocessing=ImagePreprocessing())
    octet.wait_model(name)
    pixels = np.random.default_rng(0).integers(0, 255, (2, SIDE, SIDE, 3), np.uint8)
    encoded = np.array([png(image) for image in pixels], np.object_)
    decoded = client.infer(name, inputs(pixels, datatype="UINT8")).as_numpy("logits")
    assert np.allclose(client.infer(name, inputs(encoded, datatype="BYTES")).as_numpy("logits"), decoded, atol=1e-4)


def png(image: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def test_a_stream_answers_in_order(client: Any, model: str) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(20):
        client.async_stream_infer("nothing" if number == 7 else model, inputs(), request_id=str(number))
    found = [answers.get(timeout=SECONDS) for _ in range(20)]
    client.stop_stream()
    assert [error is None for _, error in found] == [number != 7 for number in range(20)]
    assert [result.get_response().id for result, _ in found if result] == [str(n) for n in range(20) if n != 7]


def test_models_are_listed_loaded_and_unloaded(client: Any, model: str) -> None:
    client.load_model(model)
    states = {each.name: each.state for each in client.get_model_repository_index().models}
    assert states[model] == "READY"
    client.unload_model(model)
    states = {each.name: each.state for each in client.get_model_repository_index().models}
    assert states[model] == "UNAVAILABLE"
    assert client.infer(model, inputs()).as_numpy("logits").shape == (3, 4)


def test_what_was_answered_is_counted(client: Any, model: str) -> None:
    client.infer(model, inputs())
    (statistics,) = client.get_inference_statistics(model).model_stats
    assert (statistics.name, statistics.version) == (model, "1")
    assert statistics.inference_stats.success.count >= 1
    assert statistics.inference_count >= 3


def test_an_error_has_a_status_and_says_what_to_do(client: Any, model: str) -> None:
    with pytest.raises(InferenceServerException, match="the model takes") as caught:
        client.infer(model, inputs(X.astype(np.float64), datatype="FP64"))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match="no model"):
        client.infer("nothing", inputs())
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs(), client_timeout=1e-6)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
