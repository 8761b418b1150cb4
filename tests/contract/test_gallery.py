"""Pictures of flipped rows: what a stage claims, made into PNG, or left out."""

import base64
import io
from dataclasses import replace

import pytest
from PIL import Image

from workers.jobs.gallery import MOST_PICTURES, as_images
from workers.stage_records.measuring import Picture

PICTURE = Picture(row=3, width=2, height=1, pixels=(255, 0, 0, 0, 0, 255), label="cat", float32="cat", variant="dog")


def test_a_picture_comes_out_with_its_own_pixels() -> None:
    (made,) = as_images([PICTURE])
    image = Image.open(io.BytesIO(base64.b64decode(made.png)))
    assert (image.format, image.getpixel((0, 0)), image.getpixel((1, 0))) == ("PNG", (255, 0, 0), (0, 0, 255))
    assert (made.row, made.label, made.float32, made.variant) == (3, "cat", "cat", "dog")


@pytest.mark.parametrize(
    "claim",
    [
        replace(PICTURE, pixels=(1, 2, 3)),
        replace(PICTURE, pixels=(256, 0, 0, 0, 0, 0)),
        replace(PICTURE, pixels=(-1, 0, 0, 0, 0, 0)),
        replace(PICTURE, width=65, height=65, pixels=(0,) * (65 * 65 * 3)),
        replace(PICTURE, width=0, height=0, pixels=()),
    ],
)
def test_a_picture_that_is_none_is_left_out(claim: Picture) -> None:
    assert as_images([claim, PICTURE]) == as_images([PICTURE])


def test_no_more_pictures_come_out_than_a_report_may_hold() -> None:
    assert len(as_images([PICTURE] * 50)) == MOST_PICTURES
