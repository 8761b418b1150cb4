"""From an encoded image to a model's input row, as `app.domain.preprocessing` declares. Reads no files, no datasets."""

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from app.domain.errors import ImageInvalid
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import TensorSpec
from workers.data.jpeg import check_scans
from workers.pixels import Pixels, cast, image_axes, normalized, rows_axis

MOST_PIXELS = 32_000_000
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
    order = (0, 3, 1, 2) if preprocessing.layout == "chw" else (0, 1, 2, 3)
    row: npt.NDArray[np.float32] = normalized(_pixels(image, preprocessing, size=size), preprocessing, order=order)[0]
    return row


def preprocess_for(spec: TensorSpec, image: bytes, preprocessing: ImagePreprocessing) -> npt.NDArray[Any]:
    """Turn one image into the whole array that the input `spec` takes: one row, with the axis of rows and its dtype.

    An integer input gets the nearest values in its range. bfloat16 comes as uint16, its bits.

    Raises:
        ImageInvalid: as `preprocess`.
        SignatureMismatch: the row has another shape than the input's.
    """
    row = preprocess(image, preprocessing, size=input_size(spec, preprocessing))
    axis = rows_axis(spec)
    array = row if axis is None else np.expand_dims(row, axis)
    spec.check(spec.dtype, array.shape)
    return cast(array, spec.dtype)


def pixels_for(spec: TensorSpec, image: bytes, preprocessing: ImagePreprocessing) -> Pixels:
    """Turn one image into uint8[1, height, width, channels]: what `preprocess_for` has before any arithmetic.

    The channels are red, green and blue, whatever order the model takes, or one of grey.

    Raises:
        ImageInvalid: as `preprocess`.
        SignatureMismatch: the row would have another shape than the input's.
    """
    pixels = _pixels(image, preprocessing, size=input_size(spec, preprocessing))
    row = pixels.shape[1:] if preprocessing.layout == "hwc" else (pixels.shape[3], *pixels.shape[1:3])
    axis = rows_axis(spec)
    spec.check(spec.dtype, row if axis is None else (*row[:axis], 1, *row[axis:]))
    return pixels


def input_size(spec: TensorSpec, preprocessing: ImagePreprocessing) -> tuple[int, int] | None:
    """Return height and width of an image input; None if one of them is free or the input is no image."""
    height, width = sides(spec, preprocessing)
    return None if height is None or width is None else (height, width)


def sides(spec: TensorSpec, preprocessing: ImagePreprocessing) -> tuple[int | None, int | None]:
    """Return height and width of an image input, each None if it is free or the input is no image."""
    axes = image_axes(spec, preprocessing)
    return (None, None) if axes is None else axes[:2]


def _pixels(image: bytes, preprocessing: ImagePreprocessing, *, size: tuple[int, int] | None) -> Pixels:
    pixels = np.asarray(_crop(_resize(_decode(image, preprocessing.colour), preprocessing, size), preprocessing))
    return pixels.reshape(1, *pixels.shape[:2], -1)


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
