"""Zip archives as other programs write them."""

import io
import zipfile
from pathlib import Path

from workers import archives

END = b"PK\x05\x06"


def test_an_archive_whose_plain_end_defers_to_the_64_bit_one_is_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(0x10000 + 1):  # more members than the plain end can count
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    content = bytearray(stream.getvalue())
    at = content.rfind(END)
    content[at + 12 : at + 20] = b"\xff" * 8  # directory's size and place: see the 64-bit end
    path = tmp_path / "many.zip"
    path.write_bytes(content)
    with archives.open_archive(path, limits=archives.DATASETS) as archive:
        assert len(archive.infolist()) == 0x10000 + 1
