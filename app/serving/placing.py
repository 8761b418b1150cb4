"""Bring a checked request into a segment: find its arrays where they lie already, or copy them."""

from app.domain.runners import ALIGNMENT, SEGMENT_HEADER_BYTES, Part, aligned
from app.serving.requests import Request
from app.serving.segments import Segment


def find(request: Request, segment: Segment) -> tuple[tuple[Part, ...], int] | None:
    """Return where the arrays lie in the segment, and the first byte behind them; None if one does not lie there.

    An array that an engine could not read in place, for it begins at an odd address, counts as not there.
    """
    parts, end = [], SEGMENT_HEADER_BYTES
    alignment = 1 if request.form == "images" else ALIGNMENT
    for name, array in request.arrays.items():
        offset = segment.offset_of(array, alignment=alignment)
        if offset is None:
            return None
        parts.append(Part(name=name, dtype=request.dtypes[name], shape=array.shape, offset=offset))
        end = max(end, offset + array.nbytes)
    return tuple(parts), aligned(end)


def lay_out(request: Request) -> tuple[tuple[Part, ...], int]:
    """Give every array a place in a segment; return the places, and the first byte behind them."""
    parts, end = [], SEGMENT_HEADER_BYTES
    for name, array in request.arrays.items():
        parts.append(Part(name=name, dtype=request.dtypes[name], shape=array.shape, offset=end))
        end = aligned(end + array.nbytes)
    return tuple(parts), end


def copy(request: Request, parts: tuple[Part, ...], segment: Segment) -> None:
    """Copy every array to its place."""
    for part in parts:
        segment.place(part, request.arrays[part.name])
