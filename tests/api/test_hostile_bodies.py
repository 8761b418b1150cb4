"""Bodies made to break what reads them: each is refused with a sentence, for little memory."""

import io
import random
import tracemalloc
import zipfile
from collections.abc import Callable

import numpy as np
import orjson
import pytest

from app.api.arrays import count_elements, from_base64, from_nested, from_npy, from_npz, to_npy, to_npz
from app.api.read_json import read_json
from app.domain.errors import OctetError, RequestInvalid, SignatureMismatch
from app.domain.tensors import DType, TensorSpec

SPEC = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 3))
ARRAY = np.arange(12, dtype=np.float32).reshape(4, 3)
PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"


def npy(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def packed(method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("x.npy", to_npy(ARRAY))
    return stream.getvalue()


def test_text_among_numbers_costs_no_more_than_itself() -> None:
    lines = ["a" * 4000] + ["b"] * 4000  # NumPy would take 64 MB for them
    tracemalloc.start()
    try:
        with pytest.raises(SignatureMismatch, match="no numbers"):
            from_nested(lines, SPEC)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_lists_that_nest_too_deep_are_refused() -> None:
    deep: object = 1.0
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(SignatureMismatch, match="nest too deep"):
        from_nested(deep, SPEC)


@pytest.mark.parametrize("shape", [(2**63,) * 30_000, (0, 2**62, 2**62), (2**63, 0), (-1,), (1,) * 65])
def test_a_shape_that_no_array_can_have_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SignatureMismatch, match="shape"):
        from_base64("x", dtype="float32", shape=shape, text="")


def test_an_empty_array_may_have_any_shape_of_its_own() -> None:
    assert count_elements("x", (0, 2**40)) == 0
    assert from_base64("x", dtype="float32", shape=(0, 3), text="").shape == (0, 3)


@pytest.mark.parametrize(
    "header",
    [
        "((((((",
        "(" * 3000,
        "-" * 9000 + "1",
        "'''",
        "\x00",
        "{1:",
        PLAIN % f"({'9' * 4200},)",
        PLAIN % "(0, 4611686018427387904, 4611686018427387904)",
        PLAIN % f"({'9999999999999999999,' * 400})",
        PLAIN.replace("'<f4'", "[('a', '<f4'), 1]") % "(1,)",
    ],
)
def test_a_header_that_is_none_is_refused(header: str) -> None:
    with pytest.raises((RequestInvalid, SignatureMismatch), match="'x'"):
        from_npy("x", npy(header))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_npz_packed_as_numpy_never_does_is_refused(method: int) -> None:
    with pytest.raises(RequestInvalid, match="deflate"):
        from_npz(packed(method), limit=10_000)


def test_a_npz_of_very_many_files_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="1001 files"):
        from_npz(to_npz({f"x{number}": np.zeros(0) for number in range(1001)}), limit=10_000_000)


READERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "npy": (to_npy(ARRAY), lambda data: from_npy("x", data)),
    "npz": (to_npz({"x": ARRAY}), lambda data: from_npz(data, limit=100_000)),
    "npz deflated": (packed(zipfile.ZIP_DEFLATED), lambda data: from_npz(data, limit=100_000)),
    "npz bzip2": (packed(zipfile.ZIP_BZIP2), lambda data: from_npz(data, limit=100_000)),
    "npz lzma": (packed(zipfile.ZIP_LZMA), lambda data: from_npz(data, limit=100_000)),
    "json": (orjson.dumps(ARRAY.tolist()), lambda data: from_nested(read_json(data), SPEC)),
}


@pytest.mark.filterwarnings("ignore")  # NumPy's and the tokenizer's, about headers that they try to mend
@pytest.mark.parametrize("kind", READERS)
def test_whatever_the_bytes_only_expected_errors_come(kind: str) -> None:
    whole, read = READERS[kind]
    rng = random.Random(kind)
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]))
        except OctetError:
            continue
