"""How an encoded image becomes a model's input row. A declaration only: `workers.data.preprocessing` does it."""

import math
from dataclasses import dataclass
from typing import Literal

from app.domain.errors import RequestInvalid

LARGEST_SIDE = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreprocessing:
    """Steps in order: decode, convert to `colour`, resize, centre crop, times `scale`, minus mean, by std, layout.

    Attributes:
        resize: the shorter side becomes this many pixels, keeping the aspect ratio; None leaves the size.
            With `crop` None the image is resized to the input's exact height and width instead.
        crop: side of the centre square, in pixels; None for no crop.
        scale: factor on the 0..255 pixel values, before mean and std.
        mean: one value per channel, on the scaled values.
        std: one value per channel, not zero.
        layout: order of the axes of one row.
    """

    resize: int | None = None
    crop: int | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    layout: Literal["chw", "hwc"] = "chw"
    colour: Literal["rgb", "bgr", "grey"] = "rgb"

    def __post_init__(self) -> None:
        channels = 1 if self.colour == "grey" else 3
        if len(self.mean) != channels or len(self.std) != channels:
            raise RequestInvalid(f"Preprocessing in {self.colour} needs {channels} values in mean and in std.")
        if not all(math.isfinite(value) for value in (self.scale, *self.mean, *self.std)):
            raise RequestInvalid("Preprocessing takes finite numbers for scale, mean and std: no NaN, no infinity.")
        if self.scale == 0 or 0 in self.std:
            raise RequestInvalid("Preprocessing multiplies by scale and divides by std: none of them may be zero.")
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and not 1 <= size <= LARGEST_SIDE:
                raise RequestInvalid(f"Preprocessing {name} is {size} pixels: take 1 to {LARGEST_SIDE}.")
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise RequestInvalid(f"Preprocessing crops {self.crop} pixels from {self.resize}: crop at most resize.")
