"""Check a prediction against the variant's signature before anything is sent to a runner."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.errors import BatchTooLarge, RequestInvalid, SignatureMismatch
from app.domain.preprocessing import ImagePreprocessing
from app.domain.runners import Form
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Variant
from app.serving.terms import Arrays, EncodedImage, EncodedImages, Inputs, Pixels

_PIXEL_AXES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checked prediction.

    Attributes:
        arrays: in C order: the model's inputs by name, or its one input's pixels, or the bytes of every image.
        dtypes: of each array; bfloat16 lies as uint16.
    """

    form: Form
    arrays: Arrays
    dtypes: Mapping[str, DType]
    rows: int


def check(
    signature: Signature,
    inputs: Inputs,
    *,
    preprocessing: ImagePreprocessing | None,
    max_batch_size: int,
) -> Request:
    """Return the request if it fits.

    Raises:
        SignatureMismatch: a name, dtype or shape differs, an input is missing, the inputs' rows differ or are none.
        BatchTooLarge: more than `max_batch_size` rows.
        RequestInvalid: images or pixels for a model without preprocessing.
    """
    if isinstance(inputs, EncodedImage):
        inputs = EncodedImages(images=(inputs.data,))
    if isinstance(inputs, EncodedImages | Pixels):
        spec = _image_input(signature, preprocessing)
        request = _images(inputs) if isinstance(inputs, EncodedImages) else _pixels(inputs, spec, preprocessing)
        _check_count(request.rows, max_batch_size)
        _check_fixed_batch(spec, request.rows)
        return request
    for name in inputs:
        signature.input(name)
    for spec in signature.inputs:
        _check_array(spec, inputs)
    rows = _check_rows(signature, inputs, max_batch_size)
    arrays = {spec.name: _plain(spec, inputs[spec.name]) for spec in signature.inputs}
    return Request(
        form="tensors", arrays=arrays, dtypes={spec.name: spec.dtype for spec in signature.inputs}, rows=rows
    )


def check_own_limit(variant: Variant, request: Request) -> None:
    """Check that a request is not larger than the variant may answer at once.

    Raises:
        BatchTooLarge: it is; a row's answer could depend on the rows beside it.
    """
    most = variant.max_batch_size
    if most is not None and request.rows > most:
        raise BatchTooLarge(
            f"The request has {request.rows} rows, but {variant.model}:{variant.version}@{variant.name} takes at most "
            f"{most} at once, because a row's answer may depend on its neighbours: send the rows in parts."
        )


def storage(dtype: DType) -> np.dtype[Any]:
    """Return the NumPy type in which a tensor lies; bfloat16 lies as uint16."""
    return np.dtype(np.uint16) if dtype is DType.BFLOAT16 else np.dtype(str(dtype))


def _image_input(signature: Signature, preprocessing: ImagePreprocessing | None) -> TensorSpec:
    if preprocessing is None:
        raise RequestInvalid("The model was uploaded without a preprocessing for images: send arrays, or upload it so.")
    if len(signature.inputs) != 1:
        raise SignatureMismatch("An image fits a model with one input only: send arrays named as the inputs.")
    return signature.inputs[0]


def _images(inputs: EncodedImages) -> Request:
    arrays = {str(number): np.frombuffer(image, np.uint8) for number, image in enumerate(inputs.images)}
    return Request(form="images", arrays=arrays, dtypes=dict.fromkeys(arrays, DType.UINT8), rows=len(arrays))


def _pixels(inputs: Pixels, spec: TensorSpec, preprocessing: ImagePreprocessing | None) -> Request:
    data = inputs.data
    channels = 1 if preprocessing is not None and preprocessing.colour == "grey" else 3
    if data.dtype != np.uint8 or data.ndim != _PIXEL_AXES or data.shape[-1] != channels:
        raise SignatureMismatch(
            f"Pixels are {data.dtype.name}{list(data.shape)}, but must be uint8[n, height, width, {channels}]: send "
            "decoded images so, or encoded ones."
        )
    _check_sides(spec, data.shape[1:3], preprocessing)
    arrays = {spec.name: np.ascontiguousarray(data)}
    return Request(form="pixels", arrays=arrays, dtypes={spec.name: DType.UINT8}, rows=data.shape[0])


def _check_sides(spec: TensorSpec, sides: tuple[int, ...], preprocessing: ImagePreprocessing | None) -> None:
    row = spec.row_shape if spec.batch_axis is not None else spec.shape[1:]
    wanted = row[:2] if preprocessing is not None and preprocessing.layout == "hwc" else row[-2:]
    if any(want is not None and want != side for want, side in zip(wanted, sides, strict=True)) or 0 in sides:
        raise SignatureMismatch(
            f"Pixels of {sides[0]} x {sides[1]} do not fit input {spec.name!r}, which is {spec.describe()}: resize "
            "them, or send encoded images."
        )


def _plain(spec: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array in C order and in the type in which it lies in memory; not a copy if it is so already."""
    return np.asarray(array if array.dtype.kind != "V" else array.view(storage(spec.dtype)), order="C")


def _check_array(spec: TensorSpec, inputs: Arrays) -> None:
    array = inputs.get(spec.name)
    if array is None:
        raise SignatureMismatch(f"Input {spec.name!r} is missing: the model takes {spec.describe()} under that name.")
    spec.check(_dtype_name(spec, array), array.shape)


def _dtype_name(spec: TensorSpec, array: npt.NDArray[Any]) -> str:
    if spec.dtype is DType.BFLOAT16 and array.dtype == np.uint16:
        return spec.dtype
    return str(array.dtype.name)


def _check_rows(signature: Signature, inputs: Arrays, max_batch_size: int) -> int:
    counts = {
        spec.name: inputs[spec.name].shape[spec.batch_axis] for spec in signature.inputs if spec.batch_axis is not None
    }
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} has {rows}" for name, rows in counts.items())
        raise SignatureMismatch(f"Every input needs the same number of rows, but {listed}.")
    rows = next(iter(counts.values()), 1)
    _check_count(rows, max_batch_size)
    for spec in signature.inputs:
        _check_fixed_batch(spec, rows)
    return rows


def _check_count(rows: int, max_batch_size: int) -> None:
    if rows == 0:
        raise SignatureMismatch("The request has zero rows: send at least one.")
    if rows > max_batch_size:
        raise BatchTooLarge(f"The request has {rows} rows, over the limit of {max_batch_size}: send it in parts.")


def _check_fixed_batch(spec: TensorSpec, rows: int) -> None:
    fixed = None if spec.batch_axis is None else spec.shape[spec.batch_axis]
    if fixed is not None and fixed != rows:
        raise SignatureMismatch(
            f"Input {spec.name!r} takes exactly {fixed} rows, not {rows}: its graph has no other size."
        )
