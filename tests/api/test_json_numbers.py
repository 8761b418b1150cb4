"""Numbers straight out of JSON's text: the same as through Python lists, or none at all."""

import random
from collections.abc import Sequence

import numpy as np
import orjson
import pytest

from app.api import json_numbers
from app.api.arrays import from_nested
from app.api.json_numbers import Irregular
from app.api.read_json import read_json
from app.domain.errors import RequestInvalid, SignatureMismatch
from app.domain.tensors import DType, TensorSpec

PADDING = b" " * 20_000  # so that a text is long enough to be worth it
SPEC = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, None))
MANY = b"[" + b"1," * 100
WIDE = [[0.5] * 4000] * 2


def read(text: bytes) -> object:
    return json_numbers.read(text + PADDING)


def test_nested_numbers_become_one_array() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 100)).astype(np.float32)
    found = read(orjson.dumps({"inputs": x.tolist()}))
    assert isinstance(found, dict)
    array = found["inputs"]
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array.astype(np.float32), x)


def test_numbers_are_rounded_as_json_says() -> None:
    rng = random.Random(0)
    texts = [
        f"{rng.choice(('', '-'))}{rng.random() * 10 ** rng.randint(-40, 40):.{rng.randint(0, 25)}e}"
        for _ in range(5000)
    ]
    array = read(f"[{','.join(texts)}]".encode())
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [float(text) for text in texts]


def test_whole_numbers_stay_whole_and_a_fraction_makes_all_floats() -> None:
    whole, mixed = [2**62, -(2**62)] * 100, [1, 2.5] * 100
    for values, kind in ((whole, np.int64), (mixed, np.float64)):
        array = read(orjson.dumps(values))
        assert isinstance(array, np.ndarray)
        assert (array.dtype, array.tolist()) == (kind, values)


def test_what_surrounds_the_numbers_stays_python() -> None:
    members = {"id": "é", "inputs": [{"shape": [1, 3], "data": [0.5] * 100, "parameters": {"a": None, "b": True}}]}
    found = read(orjson.dumps(members))
    assert isinstance(found, dict)
    assert isinstance(found["inputs"][0].pop("data"), np.ndarray)
    del members["inputs"][0]["data"]  # type: ignore[attr-defined]
    assert found == members


@pytest.mark.parametrize(
    "text",
    [
        b'[[1],2]',
        b'[[1,2],3]',
        b'[[1,2],[3]]',
        b'[[1,2],[],[3,4]]',
        b'[1,[2],3]',
        b'[[1,[2]],[3,4]]',
        b'[[[1],2],[3,4]]',
        b'{"a":1,"a":[2.5]}',
        b'{"a[":[[1,2],[3,4]]}',
        MANY + b'true]',
        MANY + b'"2"]',
        MANY + b'null]',
        MANY + b'{"a":1}]',
        b'[true]',
        b'["a"]',
        b'[[]]',
        b'[1e999]',
        b'[18446744073709551616]',
        b'[NaN]',
        b'[1,]',
        b'[1',
        b'\xef\xbb\xbf[1]',
        b'["\xff"]',
        b'"\\ud800"',
        b"[" * 70 + b"1" + b"]" * 70,
        b'{"a":' * 20 + b"1" + b"}" * 20,
        b"[" * 2000 + b"]" * 2000,
        b'{"a\\u0000b":1}',
    ],
)  # fmt: skip
def test_what_is_irregular_is_left_alone(text: bytes) -> None:
    with pytest.raises(Irregular):
        read(text)


def test_short_texts_and_very_many_short_rows_are_left_alone() -> None:
    for text in (b"[1.5]", orjson.dumps([[1.5]] * 10_000)):
        with pytest.raises(Irregular):
            json_numbers.read(text)


@pytest.mark.parametrize("wrong", [[*WIDE, [0.5] * 3999], [*WIDE, 0.5], [*WIDE, ["a"] * 4000], [*WIDE, [None] * 4000]])
def test_a_long_text_is_refused_with_the_same_words_as_a_short_one(wrong: Sequence[object]) -> None:
    with pytest.raises(SignatureMismatch) as long:
        from_nested(read_json(orjson.dumps(wrong)), SPEC)
    with pytest.raises(SignatureMismatch) as short:
        from_nested(wrong, SPEC)
    assert long.value.message == short.value.message


def test_a_long_text_that_is_no_json_is_refused_with_a_sentence() -> None:
    with pytest.raises(RequestInvalid, match="not valid JSON"):
        read_json(orjson.dumps(WIDE)[:-1])


def test_whatever_the_lists_the_answer_is_that_of_python_lists() -> None:
    rng = random.Random(1)

    def made(depth: int) -> object:
        if depth == 0 or rng.random() < 0.15:
            return rng.choice((1, 2.5, -3, 0.125, True, None, "[")) if rng.random() < 0.05 else rng.choice((1, 2.5, -7))
        width = rng.choice((2, 2, 2, 2, 1, 3, 0))
        return [made(depth - 1) for _ in range(width)]

    for _ in range(3000):
        value = [made(3), made(3)]
        try:
            found = read(orjson.dumps({"x": value}))
        except Irregular:
            continue
        array = found["x"]  # type: ignore[index]
        assert np.array_equal(np.array(value), array)


def test_a_parser_is_used_again_whatever_came_before() -> None:
    text = orjson.dumps(WIDE)
    for _ in range(20):
        with pytest.raises(Irregular):
            read(b"[[1,2],[3]]")
        assert isinstance(json_numbers.read(text), np.ndarray)
    assert len(json_numbers._idle) == 1
