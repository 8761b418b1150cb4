"""Inputs become bodies, answers become predictions."""

import io
import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.client.predictions import JSON, NPY, NPZ, decode, encode
from app.domain.errors import OctetError, RequestInvalid, UnsupportedFormat

IMAGE = np.arange(6, dtype=np.float32).reshape(2, 3)
FACTS = {
    "Content-Type": NPZ,
    "Octet-Model": "m",
    "Octet-Version": "2",
    "Octet-Variant": "int8",
    "Octet-Queue-Ms": "0.5",
    "Octet-Compute-Ms": "1.5",
}


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def answered(outputs: object) -> bytes:
    facts = {"model": "m", "version": 2, "variant": "int8", "queue_ms": 0.5, "compute_ms": 1.5}
    return json.dumps({**facts, "outputs": outputs}).encode()


def test_one_array_travels_as_npy() -> None:
    body = encode(IMAGE)
    assert body.content_type == NPY
    assert np.array_equal(np.load(io.BytesIO(body.content)), IMAGE)


def test_named_arrays_travel_as_npz_and_come_back_so() -> None:
    body = encode({"a": IMAGE, "b": IMAGE[:1]})
    assert (body.content_type, body.accept) == (NPZ, NPZ)
    assert np.array_equal(np.load(io.BytesIO(body.content))["b"], IMAGE[:1])


@pytest.mark.parametrize("inputs", [[[1.0, 2.0]], {"x": [[1.0]]}], ids=["bare list", "by name"])
def test_nested_lists_travel_as_json(inputs: object) -> None:
    body = encode(inputs)
    assert body.content_type == JSON
    assert json.loads(body.content) == {"inputs": inputs}


@pytest.mark.parametrize(
    ("start", "kind"), [(b"\xff\xd8\xff\xe0", "image/jpeg"), (b"\x89PNG\r\n", "image/png")], ids=["jpeg", "png"]
)
def test_an_image_is_known_by_its_first_bytes(start: bytes, kind: str) -> None:
    assert encode(start).content_type == kind


def test_a_file_is_known_by_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    path.write_bytes(npz(x=IMAGE))
    assert encode(path).content_type == NPZ


def test_bytes_of_another_kind_are_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="JPEG"):
        encode(b"GIF89a")


def test_an_object_that_is_no_input_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="object"):
        encode(object())


def test_an_answer_in_json_becomes_arrays_of_its_dtype() -> None:
    outputs = {"y": {"dtype": "int64", "shape": [1, 2], "data": [[3, 4]]}}
    answer = decode(answered(outputs), httpx.Headers({"content-type": JSON}))
    assert answer.output.dtype == np.int64
    assert answer.output.tolist() == [[3, 4]]


def test_a_number_that_json_cannot_say_comes_back_as_nan() -> None:
    outputs = {"y": {"dtype": "float32", "shape": [2], "data": [None, 0.5]}}
    answer = decode(answered(outputs), httpx.Headers({"content-type": JSON}))
    assert np.array_equal(answer.output, np.array([np.nan, 0.5], np.float32), equal_nan=True)


def test_bfloat16_comes_back_as_float32() -> None:
    outputs = {"y": {"dtype": "bfloat16", "shape": [1], "data": [0.5]}}
    answer = decode(answered(outputs), httpx.Headers({"content-type": JSON}))
    assert answer.output.dtype == np.float32


def test_an_answer_in_npz_has_its_facts_in_the_headers() -> None:
    answer = decode(npz(y=IMAGE), httpx.Headers(FACTS))
    assert (answer.model, answer.version, answer.variant, answer.compute_ms) == ("m", 2, "int8", 1.5)
    assert np.array_equal(answer.output, IMAGE)


def test_an_answer_of_another_form_is_an_error() -> None:
    with pytest.raises(OctetError, match="differences"):
        decode(b"{}", httpx.Headers({"content-type": JSON}))
