"""Small pictures of rows whose answer changed, as the model saw them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.domain.tensors import Signature
from workers.data.batches import batches
from workers.measure.accuracy import Change, name_of
from workers.stage_records.common import RowSource
from workers.stage_records.measuring import Picture

MOST_PICTURES = 24
LARGEST_SIDE = 64
_SMALLEST_SIDE = 4
_IMAGE_AXES = 3
_CHANNELS = (1, 3)

Bytes = NDArray[np.uint8]


def gallery(
    changes: Sequence[Change], source: RowSource, signature: Signature, *, scratch: Path, classes: Sequence[str]
) -> tuple[Picture, ...]:
    """Draw the rows in the order given, as far as the model's first input looks like an image.

    Args:
        source: where the rows lie.
        classes: names of the classes, where they have any.
    """
    wanted = {change.row: change for change in changes}
    spec = signature.inputs[0]
    drawn: dict[int, Picture] = {}
    for batch in batches(replace(source, rows=tuple(sorted(wanted))), signature, scratch=scratch, size=1):
        array = batch.inputs[spec.name]
        pixels = picture(array if spec.batch_axis is None else array.take(0, axis=spec.batch_axis))
        if pixels is None:
            return ()
        change = wanted[batch.rows[0]]
        drawn[change.row] = _record(change, pixels, classes)
    return tuple(drawn[change.row] for change in changes)


def picture(row: NDArray[Any]) -> Bytes | None:
    """Make uint8[height, width, 3] of one row, at most 64 by 64; None if it does not look like an image.

    An image is (channels, height, width) or (height, width, channels) with one channel or three. The row's least value
    becomes 0 and its largest 255: normalisation and unit are not known here. Larger ones are averaged over areas.
    """
    image = _channels_last(row[0] if row.ndim == _IMAGE_AXES + 1 and len(row) == 1 else row)
    if image is None or image.dtype.kind not in "fiu":
        return None
    values = image.astype(np.float64)
    low, span = values.min(), values.max() - values.min()
    bytes_ = np.rint((values - low) * (255 / span if span > 0 else 0)).astype(np.uint8)
    return _shrunk(np.ascontiguousarray(np.broadcast_to(bytes_, (*bytes_.shape[:2], 3))))


def _channels_last(row: NDArray[Any]) -> NDArray[Any] | None:
    if row.ndim != _IMAGE_AXES:
        return None
    for image in (np.moveaxis(row, 0, -1), row):
        if image.shape[-1] in _CHANNELS and min(image.shape[:2]) >= _SMALLEST_SIDE:
            return image
    return None


def _shrunk(pixels: Bytes) -> Bytes:
    height, width = pixels.shape[:2]
    largest = max(height, width)
    if largest <= LARGEST_SIDE:
        return pixels
    size = tuple(max(1, round(side * LARGEST_SIDE / largest)) for side in (width, height))
    return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BOX))


def _record(change: Change, pixels: Bytes, classes: Sequence[str]) -> Picture:
    return Picture(
        row=change.row,
        width=pixels.shape[1],
        height=pixels.shape[0],
        pixels=tuple(pixels.reshape(-1).tolist()),
        label=None if change.label is None else name_of(change.label, classes),
        float32=name_of(change.float32, classes),
        variant=name_of(change.variant, classes),
    )
