"""Images turned and shifted at random: decided by the seed and the step, so that a resumed training sees the same."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import DatasetUnfit
from app.domain.recipes import Qat
from app.domain.tensors import Signature

_IMAGE_AXES = 4
_CHANNELS = (1, 3, 4)

Images = NDArray[Any]


def is_asked(recipe: Qat) -> bool:
    """Whether a recipe augments."""
    return recipe.flip or recipe.crop > 0


def image_axes(signature: Signature) -> tuple[int, int]:
    """Return which axes of a row batch are height and width.

    Raises:
        DatasetUnfit: the model does not take one batch of images.
    """
    spec = signature.inputs[0]
    if len(signature.inputs) != 1 or len(spec.shape) != _IMAGE_AXES or spec.batch_axis != 0 or spec.dtype != "float32":
        raise DatasetUnfit(
            f"flip and crop are for images, and the model takes {spec.describe()}: leave them out of the recipe."
        )
    return (2, 3) if spec.shape[1] in _CHANNELS or spec.shape[3] not in _CHANNELS else (1, 2)


def augment(images: Images, recipe: Qat, *, axes: tuple[int, int], step: int) -> Images:
    """Return the images of a step as they are seen in it.

    Args:
        images: [rows, ...], normalized, so that zeros are the mean.
    """
    rng = np.random.default_rng((recipe.seed, 1, step))
    turned = rng.random(len(images)) < 0.5  # noqa: PLR2004 - one half
    shifts = rng.integers(0, 2 * recipe.crop + 1, (len(images), 2))
    if recipe.flip:
        images = np.where(turned.reshape(-1, 1, 1, 1), np.flip(images, axes[1]), images)
    return _shifted(images, shifts, recipe.crop, axes) if recipe.crop else images


def _shifted(images: Images, shifts: NDArray[np.int64], crop: int, axes: tuple[int, int]) -> Images:
    edges = [(crop, crop) if axis in axes else (0, 0) for axis in range(images.ndim)]
    padded = np.pad(images, edges)
    cut = np.empty_like(images)
    for row, (down, right) in enumerate(shifts):
        window: list[slice] = [slice(None)] * (images.ndim - 1)
        for axis, start in zip(axes, (down, right), strict=True):
            window[axis - 1] = slice(start, start + images.shape[axis])
        cut[row] = padded[row][tuple(window)]
    return cut
