"""Check a prediction against the variant's signature before anything is sent to a runner."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.errors import BatchTooLarge, RequestInvalid, SignatureMismatch
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Variant
from app.serving.terms import Arrays, EncodedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checked prediction: arrays for every input, or one image with its preprocessing."""

    arrays: Arrays
    image: bytes | None
    preprocessing: ImagePreprocessing | None
    rows: int


def check(
    signature: Signature,
    inputs: Arrays | EncodedImage,
    *,
    preprocessing: ImagePreprocessing | None,
    max_batch_size: int,
) -> Request:
    """Return the request if it fits.

    Raises:
        SignatureMismatch: a name, dtype or shape differs, an input is missing, the inputs' rows differ or are none.
        BatchTooLarge: more than `max_batch_size` rows.
        RequestInvalid: an image for a model without preprocessing.
    """
    if isinstance(inputs, EncodedImage):
        return _check_image(signature, inputs, preprocessing)
    for name in inputs:
        signature.input(name)
    for spec in signature.inputs:
        _check_array(spec, inputs)
    rows = _check_rows(signature, inputs, max_batch_size)
    return Request(arrays=inputs, image=None, preprocessing=None, rows=rows)


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


def _check_image(signature: Signature, image: EncodedImage, preprocessing: ImagePreprocessing | None) -> Request:
    if preprocessing is None:
        raise RequestInvalid("The model was uploaded without a preprocessing for images: send arrays, or upload it so.")
    if len(signature.inputs) != 1:
        raise SignatureMismatch("An image fits a model with one input only: send arrays named as the inputs.")
    _check_fixed_batch(signature.inputs[0], 1)
    return Request(arrays={}, image=image.data, preprocessing=preprocessing, rows=1)


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
    if rows == 0:
        raise SignatureMismatch("The request has zero rows: send at least one.")
    if rows > max_batch_size:
        raise BatchTooLarge(f"The request has {rows} rows, over the limit of {max_batch_size}: send it in parts.")
    for spec in signature.inputs:
        _check_fixed_batch(spec, rows)
    return rows


def _check_fixed_batch(spec: TensorSpec, rows: int) -> None:
    fixed = None if spec.batch_axis is None else spec.shape[spec.batch_axis]
    if fixed is not None and fixed != rows:
        raise SignatureMismatch(
            f"Input {spec.name!r} takes exactly {fixed} rows, not {rows}: its graph has no other size."
        )
