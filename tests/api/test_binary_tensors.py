"""The Open Inference Protocol's binary tensors: views of the body in, bytes out, sentences for what does not fit."""

import json
import random
import struct
from typing import Any

import numpy as np
import pytest

from app.api.arrays import as_numbers
from app.api.binary_tensors import DTYPES, from_raw, strings_section, to_section
from app.api.infer_requests import Asked, header_length, inputs_of, read_request
from app.domain.errors import BatchTooLarge, OctetError, RequestInvalid, SignatureMismatch
from app.domain.tensors import DType, Signature, TensorSpec
from app.serving.terms import EncodedImages, Pixels

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
FLOATS = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 3, 4))
LOGITS = TensorSpec(name="y", dtype=DType.FLOAT32, shape=(None, 10))


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs or (FLOATS,), outputs=(LOGITS,))


def tensor(section: bytes | None = None, /, **members: Any) -> dict[str, Any]:
    made = {"name": "x", "shape": [2, 3, 4], "datatype": "FP32"} | members
    return made if section is None else made | {"parameters": {"binary_data_size": len(section)}}


def body(*inputs: dict[str, Any], rest: bytes = b"", **more: Any) -> tuple[bytes, int]:
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + rest, len(header)


def asked(*inputs: dict[str, Any], rest: bytes = b"", **more: Any) -> Asked:
    data, length = body(*inputs, rest=rest, **more)
    return read_request(memoryview(data), json_bytes=length)


def test_a_section_is_a_view_of_the_body() -> None:
    data, length = body(tensor(X.tobytes()), rest=X.tobytes())
    arrays = inputs_of(read_request(memoryview(data), json_bytes=length), signature())
    assert isinstance(arrays, dict)
    assert np.array_equal(arrays["x"], X)
    assert np.shares_memory(arrays["x"], np.frombuffer(data, np.uint8))


def test_binary_and_json_inputs_may_be_mixed() -> None:
    second = TensorSpec(name="n", dtype=DType.INT64, shape=(None,))
    third = TensorSpec(name="z", dtype=DType.FLOAT32, shape=(None,))
    numbers = {"name": "n", "shape": [2], "datatype": "INT64", "data": [1, 2]}
    z = {"name": "z", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4, "unknown": 1}}
    found = inputs_of(
        asked(tensor(X.tobytes()), numbers, z, rest=X.tobytes() + struct.pack("<f", 0.5)),
        signature(FLOATS, second, third),
    )
    assert isinstance(found, dict)
    assert {name: array.tolist() for name, array in found.items()} == {"x": X.tolist(), "n": [1, 2], "z": [0.5]}


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_goes_there_and_back(datatype: str) -> None:
    dtype = DTYPES[datatype]
    spec = TensorSpec(name="x", dtype=dtype, shape=(None,))
    given = np.array([0, 1, 1], np.float32 if dtype is DType.BFLOAT16 else str(dtype))
    section = bytes(to_section(given, dtype))
    read = inputs_of(asked(tensor(section, shape=[3], datatype=datatype), rest=section), signature(spec))
    assert isinstance(read, dict)
    assert as_numbers(read["x"], dtype).tolist() == given.tolist()


@pytest.mark.parametrize(
    ("inputs", "rest", "message"),
    [
        ([tensor(X.tobytes())], X.tobytes()[:-1], "95 bytes lie behind"),
        ([tensor(X.tobytes())], X.tobytes() + b"x", "97 bytes lie behind"),
        ([tensor(X.tobytes())], b"", "0 bytes lie behind"),
        ([tensor(b"x" * 92)], b"x" * 92, "brings 92 bytes"),
        ([tensor(X.tobytes(), shape=[2, 3, -4])], X.tobytes(), "shape"),
        ([tensor(X.tobytes(), shape=[2**63, 2**63, 0])], X.tobytes(), "shape"),
        ([tensor(X.tobytes(), shape=[1] * 70)], X.tobytes(), "shape"),
        ([tensor(X.tobytes(), shape=[10**40])], X.tobytes(), "shape"),
        ([tensor(X.tobytes(), datatype="FLOAT")], X.tobytes(), "'FLOAT', but the model takes FP32"),
        ([tensor(X.tobytes(), datatype="FP64")], X.tobytes(), "takes FP32"),
        ([tensor(X.tobytes(), name="z")], X.tobytes(), "no input 'z'"),
        ([tensor(X.tobytes()), tensor(X.tobytes())], X.tobytes() * 2, "twice"),
        ([tensor(parameters={"binary_data_size": -1})], b"", "binary_data_size of -1"),
        ([tensor(parameters={"binary_data_size": 2**62})], b"", "binary_data_size name"),
        ([tensor(X.tobytes(), data=[1.0])], X.tobytes(), "either data or a binary_data_size"),
        ([tensor()], b"", "either data or a binary_data_size"),
        ([tensor(parameters={"binary_data_size": "96"})], X.tobytes(), "not valid"),
        ([tensor(parameters={"shared_memory_region": "r"}, data=[1.0])], b"", "shared_memory_region"),
        ([tensor(data=[[1.0], [2.0, 3.0]])], b"", "no regular array"),
        ([tensor(data=[1.0], shape="x")], b"", "not valid"),
        ([tensor(data=[1.0], colour="red")], b"", "colour"),
        ([tensor(b"x", name=f"x{number}", shape=[1]) for number in range(10_000)], b"x" * 10_000, "no input 'x0'"),
        ([], b"", "no inputs"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(inputs: list[dict[str, Any]], rest: bytes, message: str) -> None:
    with pytest.raises((SignatureMismatch, RequestInvalid), match=message):
        inputs_of(asked(*inputs, rest=rest), signature())


@pytest.mark.parametrize(
    "more",
    [
        {"outputs": [{"name": "y"}, {"name": "y"}]},
        {"outputs": [{"name": "z"}]},
        {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
        {"outputs": 3},
        {"parameters": {"priority": -1}},
        {"parameters": {"timeout": -1}},
        {"parameters": {"timeout": 0.5}},
        {"parameters": 3},
        {"id": 3},
        {"colour": "red"},
    ],
)
def test_wishes_that_cannot_be_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises((SignatureMismatch, RequestInvalid)):
        inputs_of(asked(tensor(X.tobytes()), rest=X.tobytes(), **more), signature())


def test_deep_and_broken_json_is_refused() -> None:
    for header in (b"[" * 50_000 + b"]" * 50_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b"{", b"\xff", b"[NaN]"):
        with pytest.raises(RequestInvalid):
            read_request(header, json_bytes=len(header))
    deep = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + b"[" * 900 + b"]" * 900 + b"}]}"
    with pytest.raises(SignatureMismatch):
        inputs_of(read_request(deep, json_bytes=None), signature())


def test_the_json_length_is_a_number_within_the_body() -> None:
    assert header_length("12", size_bytes=12) == 12
    assert header_length(None, size_bytes=12) is None
    for text in ("13", "-1", "1.0", "0x1", "", " 1", "1_0", "²", "9" * 5000):
        with pytest.raises(RequestInvalid, match="Inference-Header-Content-Length"):
            header_length(text, size_bytes=12)


def test_a_raw_body_is_the_only_inputs_bytes() -> None:
    found = read_request(memoryview(X.tobytes()), json_bytes=0)
    arrays = inputs_of(found, signature())
    assert isinstance(arrays, dict)
    assert arrays["x"].tolist() == X.tolist()
    assert found.request.parameters.binary_data_output
    with pytest.raises(SignatureMismatch, match="2 inputs"):
        from_raw(signature(FLOATS, TensorSpec(name="n", dtype=DType.INT64, shape=(None,))), b"")


@pytest.mark.parametrize(
    ("shape", "size_bytes", "found"),
    [
        ((None, 3, 4), 96, (2, 3, 4)),
        ((2, 3, 4), 96, (2, 3, 4)),
        ((None, None, 4), 96, (1, 6, 4)),
        ((None, 3, 4), 0, (0, 3, 4)),
        ((None, 3, 4), 95, None),
        ((None, 3, 4), 52, None),
        ((2, 3, 4), 48, None),
        ((None, None, None), 96, None),
        ((None, 0), 96, None),
    ],
)
def test_the_length_of_a_raw_body_tells_its_shape(
    shape: tuple[int | None, ...], size_bytes: int, found: tuple[int, ...] | None
) -> None:
    model = signature(TensorSpec(name="x", dtype=DType.FLOAT32, shape=shape))
    if found is None:
        with pytest.raises(SignatureMismatch, match="shape"):
            from_raw(model, bytes(size_bytes))
    else:
        assert from_raw(model, bytes(size_bytes))["x"].shape == found


def images(*encoded: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in encoded)


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_bytes_are_encoded_images_and_views_of_the_body(shape: list[int]) -> None:
    section = images(b"first", b"second one")
    data, length = body(tensor(section, shape=shape, datatype="BYTES"), rest=section)
    found = inputs_of(read_request(memoryview(data), json_bytes=length), signature())
    assert isinstance(found, EncodedImages)
    assert [bytes(image) for image in found.images] == [b"first", b"second one"]
    assert all(isinstance(image, memoryview) and image.obj is data for image in found.images)


@pytest.mark.parametrize(
    ("section", "shape"),
    [
        (images(b"a", b"b"), [1]),
        (images(b"a"), [2]),
        (images(b"a", b""), [2]),
        (images(b"a")[:-1], [1]),
        (b"\xff\xff\xff\xffa", [1]),
        (b"\x00\x00", [1]),
        (b"", [1]),
        (images(b"a", b"b"), [1, 2]),
        (images(b"a"), []),
        (images(b"a"), [-1]),
        (images(b"a"), [1, 1, 1]),
    ],
)
def test_bytes_that_are_not_so_many_images_are_refused(section: bytes, shape: list[int]) -> None:
    with pytest.raises(SignatureMismatch, match=r"image|shape"):
        inputs_of(asked(tensor(section, shape=shape, datatype="BYTES"), rest=section), signature())


def test_images_in_json_and_too_many_images_are_refused() -> None:
    with pytest.raises(SignatureMismatch, match="binary_data_size"):
        inputs_of(asked(tensor(datatype="BYTES", shape=[1], data=["aGk="])), signature())
    with pytest.raises(BatchTooLarge):
        inputs_of(asked(tensor(b"", datatype="BYTES", shape=[2**20])), signature())


IMAGE = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 3, 8, 8))
PIXELS = np.arange(2 * 9 * 7 * 3, dtype=np.uint8).reshape(2, 9, 7, 3)


def test_uint8_rows_of_pixels_are_for_the_preprocessing() -> None:
    pixels = tensor(PIXELS.tobytes(), datatype="UINT8", shape=list(PIXELS.shape))
    for one, rest in ((pixels, PIXELS.tobytes()), (pixels | {"parameters": {}, "data": PIXELS.tolist()}, b"")):
        found = inputs_of(asked(one, rest=rest), signature(IMAGE))
        assert isinstance(found, Pixels)
        assert np.array_equal(found.data, PIXELS)


def test_uint8_that_the_model_takes_itself_is_its_input() -> None:
    own = TensorSpec(name="x", dtype=DType.UINT8, shape=(None, 9, 7, 3))
    other = TensorSpec(name="x", dtype=DType.UINT8, shape=(None, 3, 9, 7))
    pixels = tensor(PIXELS.tobytes(), datatype="UINT8", shape=list(PIXELS.shape))
    assert isinstance(inputs_of(asked(pixels, rest=PIXELS.tobytes()), signature(own)), dict)
    assert isinstance(inputs_of(asked(pixels, rest=PIXELS.tobytes()), signature(other)), Pixels)


def test_booleans_are_zero_or_one() -> None:
    flags = signature(TensorSpec(name="x", dtype=DType.BOOL, shape=(None,)))
    with pytest.raises(SignatureMismatch, match="neither 0 nor 1"):
        inputs_of(asked(tensor(b"\x02", shape=[1], datatype="BOOL"), rest=b"\x02"), flags)


def test_not_a_number_and_infinity_stay_what_they_are() -> None:
    values = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert np.array_equal(np.frombuffer(to_section(values, DType.FLOAT32), np.float32), values, equal_nan=True)


def test_outputs_are_written_row_by_row_whatever_their_order() -> None:
    assert bytes(to_section(np.asfortranarray(X), DType.FLOAT32)) == X.tobytes()
    assert to_section(X[:0], DType.FLOAT32).nbytes == 0
    assert strings_section([["a", "bé"]]) == images(b"a", "bé".encode())


def test_whatever_the_bytes_only_expected_errors_come() -> None:
    whole, length = body(tensor(X.tobytes()), rest=X.tobytes())
    rng = random.Random(2)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            inputs_of(
                read_request(bytes(data), json_bytes=rng.choice((length, length, rng.randrange(200)))), signature()
            )
        except OctetError:
            continue
