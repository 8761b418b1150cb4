"""Numbers into tensors and back."""

import numpy as np
import pytest

from app.api.arrays import as_numbers, from_base64, from_nested, from_npy, from_npz, to_npy, to_npz
from app.domain.errors import SignatureMismatch
from app.domain.tensors import DType, TensorSpec


def spec(dtype: DType) -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=(None,))


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.BFLOAT16])
def test_every_dtype_is_read_from_json(dtype: DType) -> None:
    value: list[object] = [True, False] if dtype is DType.BOOL else [0, 1]
    array = from_nested(value, spec(dtype))
    assert (array.dtype.name, array.tolist()) == (dtype, value)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (DType.INT8, [128]),
        (DType.UINT8, [-1]),
        (DType.INT64, [2**63]),
        (DType.INT32, [1.0]),
        (DType.BOOL, [1]),
        (DType.FLOAT32, [1e39]),
        (DType.FLOAT16, [70000]),
        (DType.FLOAT32, ["1"]),
        (DType.FLOAT32, [None]),
        (DType.FLOAT32, [[1], [2, 3]]),
        (DType.FLOAT32, {"a": 1}),
    ],
)
def test_what_a_dtype_cannot_hold_is_refused(dtype: DType, value: object) -> None:
    with pytest.raises(SignatureMismatch, match="'x'"):
        from_nested(value, spec(dtype))


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    values = np.random.default_rng(0).normal(0, 100, 1000).astype(np.float32)
    bits = from_nested(values.tolist(), spec(DType.BFLOAT16))
    assert bits.dtype == np.uint16
    back = as_numbers(bits, DType.BFLOAT16)
    assert np.all(np.abs(back - values) <= np.abs(values) * 2.0**-8)  # half a step of an 8-bit significand
    assert np.array_equal(from_nested(back.tolist(), spec(DType.BFLOAT16)), bits)


def test_bfloat16_comes_as_bits_in_base64() -> None:
    array = from_base64("x", dtype="bfloat16", shape=(1,), text="gD8=")
    assert as_numbers(array, DType.BFLOAT16).tolist() == [1.0]


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint64", "bool"])
def test_numpy_files_read_back_the_same(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    assert np.array_equal(from_npy("x", to_npy(array)), array)
    read = from_npz(to_npz({"a": array, "b": array.T}), limit=10_000)
    assert np.array_equal(read["b"], array.T)
