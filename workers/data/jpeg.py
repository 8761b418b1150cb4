"""How much work a JPEG asks of its decoder, counted before it is decoded. Decodes nothing."""

import re

from app.domain.errors import ImageInvalid

MOST_SCANS = 64
MOST_SEGMENTS = 4096
# Any other code that follows FF; 00 is a stuffed byte of a scan's data, another FF is padding.
_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_RESTARTS = range(0xD0, 0xD8)
_FIRST_KNOWN, _START, _END, _SCAN = 0xC0, 0xD8, 0xD9, 0xDA


def check_scans(image: bytes) -> None:
    """Go from marker to marker as a decoder does, past the scans' own data, and count.

    Every scan of a progressive JPEG makes the decoder go over all pixels once, and needs hardly a hundred bytes.

    Raises:
        ImageInvalid: the image has more scans or segments than any encoder writes.
    """
    position = scans = segments = 0
    while (found := _MARKER.search(image, position)) is not None:
        code, position = found[1][0], found.end()
        if code == _END:
            return
        if code < _FIRST_KNOWN or code in _RESTARTS or code == _START:
            continue
        position += int.from_bytes(image[position : position + 2], "big")
        segments += 1
        scans += code == _SCAN
        if scans > MOST_SCANS or segments > MOST_SEGMENTS:
            raise ImageInvalid(
                f"The image has more than {MOST_SCANS} scans or {MOST_SEGMENTS:,} segments: save it as a plain JPEG."
            )
