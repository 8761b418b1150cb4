"""Tensors as bytes, as the Open Inference Protocol's binary extension lays them out. No copies: arrays are views."""

from collections.abc import Sequence

import numpy as np

from app.api.arrays import Array, as_stored, count_elements, from_bytes, storage
from app.domain.errors import BatchTooLarge, SignatureMismatch
from app.domain.tensors import PROTOCOL_NAMES, DType, Signature, TensorSpec
from app.serving.terms import Arrays, EncodedImages, Pixels

Inputs = Arrays | EncodedImages | Pixels

BYTES = "BYTES"
UINT8 = PROTOCOL_NAMES[DType.UINT8]
DTYPES: dict[str, DType] = {name: dtype for dtype, name in PROTOCOL_NAMES.items()}

_LENGTH_BYTES = 4  # before every element of a BYTES tensor
_MOST_IMAGES = 2**16
_PIXEL_AXES = 4
_CHANNELS = (1, 3)


def split(data: memoryview, sizes: Sequence[tuple[str, int]]) -> list[memoryview]:
    """Cut what lies behind a request's JSON into one section for each input, in order.

    Args:
        sizes: of the inputs that come as bytes: name and number of bytes.

    Raises:
        SignatureMismatch: together they are longer or shorter than the data.
    """
    needed = sum(size for _, size in sizes)
    if needed != len(data):
        named = ", ".join(f"{name[:80]!r} {size}" for name, size in sizes[:8]) or "none"
        raise SignatureMismatch(
            f"{len(data)} bytes lie behind the request's JSON, but its binary_data_size name {needed} ({named}): send "
            "as many as they say, and the length of the JSON alone in Inference-Header-Content-Length."
        )
    sections, at = [], 0
    for _, size in sizes:
        sections.append(data[at : at + size])
        at += size
    return sections


def from_section(spec: TensorSpec, section: bytes | memoryview, *, datatype: str, shape: Sequence[int]) -> Array:
    """View one tensor's bytes as an array.

    Raises:
        SignatureMismatch: the datatype is not the model's, or the bytes are not as many as the shape needs.
    """
    check_datatype(spec, datatype)
    return from_bytes(spec.name, section, dtype=spec.dtype, shape=shape)


def check_datatype(spec: TensorSpec, datatype: str) -> None:
    """Check an input's datatype.

    Raises:
        SignatureMismatch: it is another than the model takes.
    """
    wanted = PROTOCOL_NAMES[spec.dtype]
    if datatype != wanted:
        raise SignatureMismatch(f"Input {spec.name!r} is {datatype[:40]!r}, but the model takes {wanted}.")


def encoded_images(name: str, section: bytes | memoryview, *, shape: Sequence[int]) -> EncodedImages:
    """Take a BYTES tensor apart: one encoded image an element, each behind its length in 4 bytes, little-endian.

    Raises:
        SignatureMismatch: the shape is not [n] or [n, 1], or the bytes are not so many images.
        BatchTooLarge: there are too many.
    """
    count = _count_images(name, shape)
    view, at, images = memoryview(section), 0, []
    for _ in range(count):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(view[at:begin], "little")
        if at > len(view) or at <= begin:
            raise _not_images(name, count)
        images.append(view[begin:at])
    if at != len(view):
        raise _not_images(name, count)
    return EncodedImages(images=tuple(images))


def _count_images(name: str, shape: Sequence[int]) -> int:
    if len(shape) not in (1, 2) or tuple(shape[1:]) not in ((), (1,)):
        raise SignatureMismatch(f"Input {name!r} has images of shape {list(shape)[:8]}: send [n] or [n, 1].")
    count = count_elements(name, shape)
    if count > _MOST_IMAGES:
        raise BatchTooLarge(f"The request has {count} images, over the limit of {_MOST_IMAGES}: send it in parts.")
    return count


def _not_images(name: str, count: int) -> SignatureMismatch:
    return SignatureMismatch(
        f"Input {name!r} does not hold exactly {count} images, none of them empty: send as many as its shape says, "
        f"each behind its length in {_LENGTH_BYTES} bytes, little-endian."
    )


def means_pixels(spec: TensorSpec, *, dtype: str, shape: Sequence[int]) -> bool:
    """Whether an array is pixels for the model's preprocessing rather than the input itself."""
    if dtype != DType.UINT8 or len(shape) != _PIXEL_AXES or shape[-1] not in _CHANNELS:
        return False
    return spec.dtype is not DType.UINT8 or not _fits(spec, shape)


def _fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    return len(spec.shape) == len(shape) and all(
        want is None or axis == spec.batch_axis or want == size
        for axis, (want, size) in enumerate(zip(spec.shape, shape, strict=True))
    )


def pixels_or_array(signature: Signature, spec: TensorSpec, array: Array) -> Inputs:
    """Return what an array for a model's only input is: that input, or pixels for its preprocessing."""
    if len(signature.inputs) == 1 and means_pixels(spec, dtype=str(array.dtype), shape=array.shape):
        return Pixels(data=array)
    return {spec.name: array}


def from_raw(signature: Signature, data: bytes | memoryview) -> Arrays:
    """Read a body that is one input's bytes and nothing else; its length tells the one size that is not fixed.

    Raises:
        SignatureMismatch: the model has several inputs, or no shape of its input has so many bytes.
    """
    spec = only_input(signature)
    return {spec.name: from_bytes(spec.name, data, dtype=spec.dtype, shape=_shape_of(spec, len(data)))}


def only_input(signature: Signature) -> TensorSpec:
    """Return the input of a model that has one.

    Raises:
        SignatureMismatch: it has several.
    """
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise SignatureMismatch(f"The model has {len(signature.inputs)} inputs ({names}): send each under its name.")
    return signature.inputs[0]


def _shape_of(spec: TensorSpec, size_bytes: int) -> tuple[int, ...]:
    """Solve for the size that may differ. Where several may, there is one row."""
    shape = list(spec.shape)
    free = [axis for axis, size in enumerate(shape) if size is None]
    if len(free) > 1 and spec.batch_axis in free:
        shape[spec.batch_axis] = 1
        free.remove(spec.batch_axis)
    fixed = storage(spec.dtype).itemsize * count_elements(spec.name, [1 if size is None else size for size in shape])
    if len(free) == 1:
        shape[free[0]] = size_bytes // fixed if fixed else 0
    found = [1 if size is None else size for size in shape]
    if len(free) > 1 or count_elements(spec.name, found) * storage(spec.dtype).itemsize != size_bytes:
        raise SignatureMismatch(
            f"Input {spec.name!r} brings {size_bytes} bytes, from which its shape cannot be told: the model takes "
            f"{spec.describe()}; send whole rows of that, or a request that says the shape."
        )
    return tuple(found)


def to_section(array: Array, dtype: DType) -> memoryview:
    """View an output as the bytes that it is sent as."""
    return as_stored(array, dtype).reshape(-1).view(np.uint8).data


def strings_section(rows: Sequence[Sequence[str]]) -> bytes:
    """Write strings as a BYTES tensor."""
    texts = [text.encode() for row in rows for text in row]
    return b"".join(len(text).to_bytes(_LENGTH_BYTES, "little") + text for text in texts)
