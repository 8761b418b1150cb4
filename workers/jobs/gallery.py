"""Pictures that a stage claims to have seen, checked and made into PNG by the trusted side."""

import base64
import io
from collections.abc import Iterable, Iterator

from PIL import Image

from app.domain.evidence import FlippedImage
from workers.stage_records.measuring import Picture

MOST_PICTURES = 24
LONGEST_SIDE = 64
_CHANNELS = 3
_BRIGHTEST = 255


def as_images(pictures: Iterable[Picture]) -> tuple[FlippedImage, ...]:
    """Return the pictures that are what they should be, at most `MOST_PICTURES`."""
    return tuple(_images(pictures))[:MOST_PICTURES]


def _images(pictures: Iterable[Picture]) -> Iterator[FlippedImage]:
    for picture in pictures:
        if not _plausible(picture):
            continue
        image = Image.frombytes("RGB", (picture.width, picture.height), bytes(picture.pixels))
        with io.BytesIO() as file:
            image.save(file, format="PNG", optimize=True)
            png = base64.b64encode(file.getvalue()).decode()
        yield FlippedImage(
            row=picture.row, png=png, label=picture.label, float32=picture.float32, variant=picture.variant
        )


def _plausible(picture: Picture) -> bool:
    sides = 1 <= picture.width <= LONGEST_SIDE and 1 <= picture.height <= LONGEST_SIDE
    whole = len(picture.pixels) == picture.width * picture.height * _CHANNELS
    return sides and whole and all(0 <= value <= _BRIGHTEST for value in picture.pixels)
