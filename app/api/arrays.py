"""Arrays out of a prediction's body: JSON, base64, `.npy`, `.npz`, bytes. Nothing is ever unpickled.

What lies in a body as an array's bytes do is not copied: the array is a view of the body.
"""

import base64
import binascii
import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.domain.errors import AnswerTooLarge, RequestInvalid, SignatureMismatch, UploadTooLarge
from app.domain.tensors import DType, TensorSpec

Array = npt.NDArray[Any]

_DTYPES = tuple(str(dtype) for dtype in DType)
_MOST_AXES = 64  # NumPy's own limit
_MOST_ELEMENTS = 2**56  # so that no array's bytes overflow NumPy's counter
_MOST_MEMBERS = 1000
_MOST_HEADER_BYTES = 16 * 1024  # of a `.npy`; NumPy itself takes no header over 10,000
# NumPy evaluates a header as a Python literal, after Python's own tokenizer has mended it.
_UNREADABLE_HEADER = (
    SyntaxError,
    tokenize.TokenError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    RecursionError,
    MemoryError,
)
_UNREADABLE_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    OverflowError,
)


def from_nested(value: object, spec: TensorSpec) -> Array:
    """Turn nested JSON lists into the input's dtype; whole numbers may become floats, floats never integers.

    Args:
        value: as a JSON parser gives it, or the array that `app.api.json_numbers` made of it.

    Raises:
        SignatureMismatch: ragged lists, anything but numbers, or numbers that the dtype cannot hold.
    """
    read = value if isinstance(value, np.ndarray) else _from_lists(value, spec)
    _check_kind(read, spec)
    return _converted(read, spec)


def _from_lists(value: object, spec: TensorSpec) -> Array:
    _check_leaves(value, spec)
    try:
        read = np.array(value)
    except (ValueError, OverflowError) as error:
        raise _irregular(spec) from error
    return read if read.size else read.astype(_numbers_of(spec.dtype))


def _check_leaves(value: object, spec: TensorSpec) -> None:
    """Refuse what NumPy would take for text or objects, whose arrays can be larger than their JSON by far."""
    level: list[object] = [value]
    for _ in range(_MOST_AXES + 1):
        kinds = set(map(type, level))
        if kinds != {list}:
            break
        level = list(chain.from_iterable(level))  # type: ignore[arg-type]
    if not kinds <= {int, float, bool, list}:
        raise SignatureMismatch(f"Input {spec.name!r} holds no numbers, but the model takes {spec.describe()}.")
    if list in kinds:
        raise _irregular(spec)


def _irregular(spec: TensorSpec) -> SignatureMismatch:
    return SignatureMismatch(
        f"Input {spec.name!r} is no regular array (its lists differ in length or nest too deep): "
        f"the model takes {spec.describe()}."
    )


def _check_kind(read: Array, spec: TensorSpec) -> None:
    allowed = {"f": "iuf", "b": "b"}.get(_numbers_of(spec.dtype).kind, "iu")
    if read.dtype.kind in allowed:
        return
    found = {"f": "floats", "b": "booleans", "i": "integers", "u": "integers"}.get(read.dtype.kind, "no numbers")
    raise SignatureMismatch(f"Input {spec.name!r} holds {found}, but the model takes {spec.describe()}.")


def _converted(read: Array, spec: TensorSpec) -> Array:
    target = _numbers_of(spec.dtype)
    if target.kind in "iu" and read.size and not _holds(target, read):
        raise _out_of_range(spec)
    try:
        with np.errstate(over="raise"):
            numbers = read.astype(target)
    except FloatingPointError as error:
        raise _out_of_range(spec) from error
    return _bfloat16_bits(numbers) if spec.dtype is DType.BFLOAT16 else numbers


def _holds(target: np.dtype[Any], read: Array) -> bool:
    limits = np.iinfo(target)
    return int(read.min()) >= limits.min and int(read.max()) <= limits.max


def _out_of_range(spec: TensorSpec) -> SignatureMismatch:
    return SignatureMismatch(f"Input {spec.name!r} holds a number that {spec.dtype} cannot: send smaller ones.")


def _numbers_of(dtype: DType) -> np.dtype[Any]:
    """Return the type in which a tensor's numbers are written in JSON."""
    return np.dtype(np.float32) if dtype is DType.BFLOAT16 else np.dtype(str(dtype))


def _bfloat16_bits(numbers: Array) -> Array:
    """Round float32 to bfloat16, to the nearest, ties to even; the bits lie in uint16."""
    bits = numbers.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    quiet_nan = np.uint32(0x7FC0)
    return np.where(np.isnan(numbers), quiet_nan, rounded).astype(np.uint16)


def storage(dtype: DType) -> np.dtype[Any]:
    """Return the NumPy type in which a tensor's bytes lie, little-endian; bfloat16's bits lie as uint16."""
    return np.dtype(np.uint16 if dtype is DType.BFLOAT16 else str(dtype)).newbyteorder("<")


def as_stored(array: Array, dtype: DType) -> Array:
    """Return an output as its bytes lie: row-major, little-endian; bfloat16, which comes as float32, as its bits."""
    if dtype is DType.BFLOAT16 and array.dtype == np.float32:
        array = _bfloat16_bits(array)
    return np.asarray(array, storage(dtype), order="C")


def as_numbers(array: Array, dtype: DType) -> Array:
    """Return an output as NumPy can show it: bfloat16 bits become float32."""
    if dtype is DType.BFLOAT16 and array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def from_base64(name: str, *, dtype: str, shape: tuple[int, ...], text: str) -> Array:
    """Read a tensor's bytes, row-major and little-endian.

    Raises:
        SignatureMismatch: no such dtype, or a number of bytes that the shape does not need.
        RequestInvalid: it is not base64.
    """
    if dtype not in _DTYPES:
        raise SignatureMismatch(f"Input {name!r} has dtype {dtype[:40]!r}: take one of {', '.join(_DTYPES)}.")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestInvalid(f"Input {name!r} is not base64: encode its bytes as RFC 4648 says.") from error
    return from_bytes(name, data, dtype=DType(dtype), shape=shape)


def from_bytes(name: str, data: bytes | memoryview, *, dtype: DType, shape: Sequence[int]) -> Array:
    """View a tensor's bytes, row-major and little-endian, as an array.

    Raises:
        SignatureMismatch: a number of bytes that the shape does not need, or booleans that are neither 0 nor 1.
    """
    array = _shaped(name, data, dtype=storage(dtype), shape=tuple(shape), order="C")
    if dtype is DType.BOOL and array.size and array.view(np.uint8).max() > 1:
        raise SignatureMismatch(
            f"Input {name!r} has a boolean that is neither 0 nor 1: send one byte of these for each."
        )
    return array


def from_npy(name: str, data: bytes | memoryview) -> Array:
    """Read one `.npy` (numpy.lib.format, versions 1.0 and 2.0).

    Raises:
        RequestInvalid: it is not one, or holds objects or records.
        SignatureMismatch: its bytes are not what its header says.
    """
    stream = io.BytesIO(data[:_MOST_HEADER_BYTES])
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](stream)
    except _UNREADABLE_HEADER as error:
        raise RequestInvalid(f"Array {name!r} is not a .npy file: write it with numpy.save.") from error
    if dtype.kind not in "biuf":
        raise RequestInvalid(f"Array {name!r} holds {dtype}: only numbers and booleans can be sent.")
    return _shaped(name, memoryview(data)[stream.tell() :], dtype=dtype, shape=shape, order="F" if fortran else "C")


def count_elements(name: str, shape: Sequence[int]) -> int:
    """Return how many elements an array of this shape has.

    Raises:
        SignatureMismatch: no array can have that shape.
    """
    impossible = SignatureMismatch(
        f"Input {name!r} has a shape that no array can have: send at most {_MOST_AXES} sizes, none negative, that "
        "fit its data."
    )
    if len(shape) > _MOST_AXES:
        raise impossible
    extent = 1  # without the zeros, as NumPy bounds it too
    for size in shape:
        if not 0 <= size <= _MOST_ELEMENTS // extent:
            raise impossible
        extent *= size or 1
    return 0 if 0 in shape else extent


def _shaped(
    name: str, data: bytes | memoryview, *, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]
) -> Array:
    """View bytes as an array; only Fortran's order and a foreign byte order take a copy."""
    needed = count_elements(name, shape) * dtype.itemsize
    if needed != len(data):
        raise SignatureMismatch(
            f"Input {name!r} brings {len(data)} bytes, but {dtype.name}{list(shape)} needs {needed}: send those."
        )
    array = np.frombuffer(data, dtype).reshape(shape, order=order)
    return np.asarray(array, dtype.newbyteorder("="), order="C")


def from_npz(data: bytes | memoryview, *, limit: int) -> dict[str, Array]:
    """Read every array of a `.npz`.

    Raises:
        RequestInvalid: it is not one, or is packed as `numpy.savez` does not.
        UploadTooLarge: unpacked it is larger than `limit` bytes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_members(members)
            if sum(member.file_size for member in members) > limit:
                raise UploadTooLarge(
                    f"The .npz unpacks to more than {limit} bytes, the limit: send fewer rows, or raise "
                    "OCTET_MAX_PREDICT_BYTES."
                )
            # zipfile reads no more than file_size bytes of a member, whatever the compressed stream would give
            unpacked = {member.filename.removesuffix(".npy"): archive.read(member) for member in members}
    except _UNREADABLE_ZIP as error:
        raise RequestInvalid("The body is not a .npz file: write it with numpy.savez.") from error
    return {name: from_npy(name, content) for name, content in unpacked.items()}


def npz_size(data: bytes | memoryview) -> int:
    """Return how many bytes a `.npz` says it unpacks to; its own length if it is none, which `from_npz` then says."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(member.file_size for member in archive.infolist())
    except _UNREADABLE_ZIP:
        return len(data)


def listed(outputs: Mapping[str, Array], *, limit: int) -> dict[str, object]:
    """Return outputs as `orjson` writes them, which is done while every other request waits.

    Raises:
        AnswerTooLarge: they are larger than `limit` bytes as arrays.
    """
    size = sum(array.nbytes for array in outputs.values())
    if size > limit:
        raise AnswerTooLarge(
            f"The answer is {size} bytes, too large for JSON, whose limit is {limit}: ask for it with Accept: "
            "application/x-npz, send fewer rows, or raise OCTET_MAX_JSON_BYTES."
        )
    return {name: listable(array) for name, array in outputs.items()}


def _check_members(members: Sequence[zipfile.ZipInfo]) -> None:
    if len(members) > _MOST_MEMBERS:
        raise RequestInvalid(f"The .npz holds {len(members)} files: send at most {_MOST_MEMBERS}, one for each input.")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise RequestInvalid(
            "The .npz is packed with another method than deflate: write it with numpy.savez or numpy.savez_compressed."
        )


def listable(array: Array) -> object:
    """Return an output as `orjson` writes it: a C-ordered array, or a plain number where there is no axis."""
    return np.ascontiguousarray(array) if array.ndim else array.item()


def to_npy(array: Array) -> bytes:
    """Write one array as `.npy`."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def to_npz(arrays: dict[str, Array]) -> bytes:
    """Write arrays as `.npz`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", to_npy(array))
    return stream.getvalue()
