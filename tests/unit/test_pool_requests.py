"""A prediction that does not fit the signature is refused before a runner hears of it."""

import numpy as np
import pytest

from app.domain.errors import BatchTooLarge, OctetError, RequestInvalid, SignatureMismatch
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import DType, Signature, TensorSpec
from app.serving.requests import Request, check
from app.serving.terms import Arrays, EncodedImage, EncodedImages, Inputs, Pixels

X = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 3))
IDS = TensorSpec(name="ids", dtype=DType.INT64, shape=(2, None), batch_axis=1)
Y = TensorSpec(name="y", dtype=DType.FLOAT32, shape=(None, 2))
IMAGE = EncodedImage(data=b"...")


def checked(inputs: Inputs, *specs: TensorSpec, preprocessing: ImagePreprocessing | None = None) -> Request:
    return check(Signature(inputs=specs, outputs=(Y,)), inputs, preprocessing=preprocessing, max_batch_size=8)


def x(rows: int = 1, dtype: str = "float32") -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    return np.zeros((rows, 3), dtype)


def test_rows_are_counted_along_the_batch_axis() -> None:
    assert checked({"x": x(5), "ids": np.zeros((2, 5), np.int64)}, X, IDS).rows == 5


def test_a_model_without_a_batch_axis_takes_one_row() -> None:
    spec = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(7, 3), batch_axis=None)
    assert checked({"x": x(7)}, spec).rows == 1


def test_an_input_without_axes_stays_without() -> None:
    spec = TensorSpec(name="scale", dtype=DType.FLOAT32, shape=(), batch_axis=None)
    assert checked({"scale": np.array(2, np.float32)}, spec).arrays["scale"].shape == ()


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({}, SignatureMismatch, "'x' is missing"),
        ({"x": x(), "z": x()}, SignatureMismatch, "no input 'z'"),
        ({"x": x(dtype="float64")}, SignatureMismatch, "float64"),
        ({"x": np.zeros((1, 4), np.float32)}, SignatureMismatch, r"\[1, 4\]"),
        ({"x": np.zeros(3, np.float32)}, SignatureMismatch, r"\[3\]"),
        ({"x": np.array([["a", "b", "c"]])}, SignatureMismatch, "str"),
        ({"x": x(0)}, SignatureMismatch, "zero rows"),
        ({"x": x(9)}, BatchTooLarge, "limit of 8"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(inputs: Arrays, error: type[OctetError], words: str) -> None:
    with pytest.raises(error, match=words):
        checked(inputs, X)


def test_inputs_with_different_numbers_of_rows_are_refused() -> None:
    with pytest.raises(SignatureMismatch, match="'x' has 2, 'ids' has 3"):
        checked({"x": x(2), "ids": np.zeros((2, 3), np.int64)}, X, IDS)


def test_a_graph_of_one_batch_size_takes_no_other() -> None:
    spec = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(4, 3))
    assert checked({"x": x(4)}, spec).rows == 4
    with pytest.raises(SignatureMismatch, match="exactly 4 rows"):
        checked({"x": x(3)}, spec)


def test_bfloat16_comes_as_its_bits() -> None:
    spec = TensorSpec(name="x", dtype=DType.BFLOAT16, shape=(None, 3))
    assert checked({"x": x(dtype="uint16")}, spec).rows == 1
    with pytest.raises(SignatureMismatch):
        checked({"x": x(dtype="int16")}, spec)


def test_an_image_is_one_row() -> None:
    assert checked(IMAGE, X, preprocessing=ImagePreprocessing()).rows == 1


def test_an_image_needs_a_preprocessing() -> None:
    with pytest.raises(RequestInvalid, match="preprocessing"):
        checked(IMAGE, X)


def test_an_image_needs_a_model_with_one_input() -> None:
    with pytest.raises(SignatureMismatch, match="one input"):
        checked(IMAGE, X, IDS, preprocessing=ImagePreprocessing())


def test_every_encoded_image_is_a_row_and_none_is_copied() -> None:
    images = (b"one", memoryview(b"three"))
    request = checked(EncodedImages(images=images), X, preprocessing=ImagePreprocessing())
    assert (request.form, request.rows) == ("images", 2)
    assert [array.tobytes() for array in request.arrays.values()] == [b"one", b"three"]
    assert not any(array.flags.owndata for array in request.arrays.values())


def test_no_image_is_no_request() -> None:
    with pytest.raises(SignatureMismatch, match="zero rows"):
        checked(EncodedImages(images=()), X, preprocessing=ImagePreprocessing())


PICTURE = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 3, 4, 5))


def pixels(*shape: int, dtype: str = "uint8") -> Pixels:
    return Pixels(data=np.zeros(shape, dtype))


def test_pixels_of_the_models_size_are_rows() -> None:
    request = checked(pixels(2, 4, 5, 3), PICTURE, preprocessing=ImagePreprocessing())
    assert (request.form, request.rows, request.dtypes) == ("pixels", 2, {"x": DType.UINT8})


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (pixels(1, 5, 4, 3), SignatureMismatch, "5 x 4 do not fit"),
        (pixels(1, 4, 5, 1), SignatureMismatch, r"must be uint8\[n, height, width, 3\]"),
        (pixels(4, 5, 3), SignatureMismatch, "must be uint8"),
        (pixels(1, 4, 5, 3, dtype="float32"), SignatureMismatch, "float32"),
        (pixels(0, 4, 5, 3), SignatureMismatch, "zero rows"),
        (pixels(9, 4, 5, 3), BatchTooLarge, "limit of 8"),
    ],
)
def test_pixels_that_do_not_fit_are_refused_with_the_reason(data: Pixels, error: type[OctetError], words: str) -> None:
    with pytest.raises(error, match=words):
        checked(data, PICTURE, preprocessing=ImagePreprocessing())


def test_pixels_need_a_preprocessing() -> None:
    with pytest.raises(RequestInvalid, match="preprocessing"):
        checked(pixels(1, 4, 5, 3), PICTURE)


def test_a_model_of_grey_images_takes_one_channel() -> None:
    grey = ImagePreprocessing(colour="grey", mean=(0.0,), std=(1.0,))
    assert checked(pixels(1, 4, 5, 1), PICTURE, preprocessing=grey).rows == 1
