"""Conditional and partial requests for an immutable file (RFC 9110, sections 13 and 14): a single range of bytes."""

import re

from app.domain.errors import RangeInvalid

_RANGE = re.compile(r"bytes=\s*(?P<first>\d{0,19})-(?P<last>\d{0,19})\s*")


def etag_of(sha256: str) -> str:
    """Return the strong entity tag of a file."""
    return f'"{sha256}"'


def matches(if_none_match: str | None, etag: str) -> bool:
    """Return whether the client has the file already."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def wanted(header: str | None, *, size: int, if_range: str | None, etag: str) -> tuple[int, int] | None:
    """Return the bytes asked for as (start, end), end not included; None means all of them.

    A header that is malformed, asks for several ranges, or is for another version of the file is ignored, as the
    RFC allows.

    Raises:
        RangeInvalid: no byte of the file is inside the range.
    """
    match = _RANGE.fullmatch(header) if header is not None else None
    if match is None or (if_range is not None and if_range.strip() != etag):
        return None
    first, last = match["first"], match["last"]
    if not first:
        return _suffix(last, size=size)
    start, end = int(first), min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    if start >= size:
        raise _outside(header, size=size)
    return start, end


def _suffix(length: str, *, size: int) -> tuple[int, int] | None:
    if not length:
        return None
    if int(length) == 0 or size == 0:
        raise _outside(f"bytes=-{length}", size=size)
    return max(0, size - int(length)), size


def _outside(header: str | None, *, size: int) -> RangeInvalid:
    return RangeInvalid(f"Range {header!r} is outside the file's {size} bytes: ask for bytes 0 to {size - 1}.")
