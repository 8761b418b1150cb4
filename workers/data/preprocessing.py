"""From an encoded image to a model's input row, as `app.domain.preprocessing` declares. Reads no files, no datasets."""

import io
import struct
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from app.domain.errors import ImageInvalid
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import DType, TensorSpec
from workers.data.jpeg import check_scans

MOST_PIXELS = 32_000_000
IMAGE_AXES = 3
FORMATS = ("JPEG", "PNG")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)


def preprocess(
    image: bytes, preprocessing: ImagePreprocessing, *, size: tuple[int, int] | None
) -> npt.NDArray[np.float32]:
    """Turn one JPEG or PNG into one row, in the declared layout.

    The image is turned upright as its EXIF orientation says. Transparency is dropped, not blended; 16-bit grey is
    brought to 0..255. Resizing is bilinear and antialiased, on the 8-bit pixels; sizes and the crop's corner are
    rounded as torchvision does.

    Args:
        size: height and width of the model's input, to which the image is resized when there is no crop; None if
            they are free.

    Raises:
        ImageInvalid: it cannot be decoded, has over 32 million pixels or too many scans, or is smaller than the crop.
    """
    pixels = np.asarray(_crop(_resize(_decode(image, preprocessing.colour), preprocessing, size), preprocessing))
    return _normalize(pixels, preprocessing)


def preprocess_for(spec: TensorSpec, image: bytes, preprocessing: ImagePreprocessing) -> npt.NDArray[Any]:
    """Turn one image into the whole array that the input `spec` takes: one row, with the axis of rows and its dtype.

    An integer input gets the nearest values in its range. bfloat16 comes as uint16, its bits.

    Raises:
        ImageInvalid: as `preprocess`.
        SignatureMismatch: the row has another shape than the input's.
    """
    row = preprocess(image, preprocessing, size=input_size(spec, preprocessing))
    axis = _rows_axis(spec)
    array = row if axis is None else np.expand_dims(row, axis)
    spec.check(spec.dtype, array.shape)
    return _cast(array, spec.dtype)


def input_size(spec: TensorSpec, preprocessing: ImagePreprocessing) -> tuple[int, int] | None:
    """Return height and width of an image input; None if one of them is free or the input is no image."""
    height, width = sides(spec, preprocessing)
    return None if height is None or width is None else (height, width)


def sides(spec: TensorSpec, preprocessing: ImagePreprocessing) -> tuple[int | None, int | None]:
    """Return height and width of an image input, each None if it is free or the input is no image."""
    axis = _rows_axis(spec)
    shape = [size for number, size in enumerate(spec.shape) if number != axis]
    if len(shape) != IMAGE_AXES:
        return None, None
    height, width = shape[1:] if preprocessing.layout == "chw" else shape[:2]
    return height, width


def _rows_axis(spec: TensorSpec) -> int | None:
    """Return the axis that counts images: the batch axis, or the first of a graph that is fixed to one row."""
    fixed = spec.batch_axis is None and len(spec.shape) > IMAGE_AXES and spec.shape[0] == 1
    return 0 if fixed else spec.batch_axis


def _decode(data: bytes, colour: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_pixels(opened.width, opened.height)
            if opened.format != "PNG":
                check_scans(data)
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            return _eight_bit(upright).convert("L" if colour == "grey" else "RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageInvalid(f"The image has over {MOST_PIXELS:,} pixels: send a smaller one.") from error
    except UnidentifiedImageError as error:
        raise ImageInvalid(
            "The image cannot be decoded (it is not a JPEG or PNG image): send a whole JPEG or PNG."
        ) from error
    except _BROKEN as error:
        raise ImageInvalid(f"The image cannot be decoded ({error}): send a whole JPEG or PNG.") from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ImageInvalid(
            f"The image would have {width} x {height} pixels, over the limit of {MOST_PIXELS:,}: send a smaller one."
        )


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey to 8 bits, which Pillow would clip, and palettes with transparency to plain colour."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.float32) / 257 + 0.5).clip(0, 255).astype(np.uint8))
    return image.convert("RGBA") if image.mode == "P" else image


def _resize(image: Image.Image, preprocessing: ImagePreprocessing, size: tuple[int, int] | None) -> Image.Image:
    if preprocessing.crop is None and size is not None:
        height, width = size
    elif preprocessing.resize is not None:
        height, width = _shorter_side(image, preprocessing.resize)
    else:
        return image
    _check_pixels(width, height)
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _shorter_side(image: Image.Image, side: int) -> tuple[int, int]:
    if image.height <= image.width:
        return side, int(side * image.width / image.height)
    return int(side * image.height / image.width), side


def _crop(image: Image.Image, preprocessing: ImagePreprocessing) -> Image.Image:
    side = preprocessing.crop
    if side is None:
        return image
    if min(image.size) < side:
        raise ImageInvalid(
            f"The image has {image.width} x {image.height} pixels, but the model crops {side}: send a larger one."
        )
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _normalize(pixels: npt.NDArray[np.uint8], preprocessing: ImagePreprocessing) -> npt.NDArray[np.float32]:
    """Order the colours, scale, subtract mean, divide by std, order the axes; float32 throughout."""
    rows = pixels.reshape(*pixels.shape[:2], -1)
    if preprocessing.colour == "bgr":
        rows = rows[:, :, ::-1]
    scaled = rows.astype(np.float32) * np.float32(preprocessing.scale)
    scaled -= np.asarray(preprocessing.mean, np.float32)
    scaled /= np.asarray(preprocessing.std, np.float32)
    return np.ascontiguousarray(scaled if preprocessing.layout == "hwc" else scaled.transpose(2, 0, 1))


def _cast(array: npt.NDArray[np.float32], dtype: DType) -> npt.NDArray[Any]:
    if dtype is DType.FLOAT32:
        return array
    if dtype is DType.BFLOAT16:
        return array.astype(ml_dtypes.bfloat16).view(np.uint16)
    target = np.dtype(str(dtype))
    if target.kind in "iu":
        limits = np.iinfo(target)
        return np.rint(array).clip(limits.min, limits.max).astype(target)
    return array.astype(target)
