"""Zip archives from strangers: checked before a member is read. Nothing is ever extracted to the disk."""

import errno
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from app.domain.errors import UploadRefused, UploadUnreadable

MOST_MEMBERS = 200_000
LARGEST_DIRECTORY_BYTES = 64 << 20
LARGEST_EXPANDED_BYTES = 256 << 30
# Deflate reaches 1032:1 on zeros, which a mask may be; a small archive may, a large one is a bomb.
LARGEST_RATIO = 100
RATIO_MATTERS_FROM_BYTES = 1 << 30

_END = b"PK\x05\x06"
_END_SIZE = 22
_LOCATOR64 = b"PK\x06\x07"
_END64_SIZE = 56 + 20
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError, OSError)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip, with what is broken inside, now or while it is read, told as `UploadUnreadable`."""
    _check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _BROKEN as error:
        # an offset outside the file is an "invalid argument" to seek; every other OSError is the machine's
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise UploadUnreadable(f"The zip archive is broken ({error}): make it again and send all of it.") from error


def checked_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """List the archive's files, without folders, after checking every name, kind and size.

    Raises:
        UploadRefused: a path that leads outside, a link, an encrypted or repeated member, or a bomb.
    """
    members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        raise UploadRefused(f"The zip archive has {len(members)} members, the limit is {MOST_MEMBERS}.")
    for member in members:
        _check_member(member)
    _check_sizes(members)
    names = {member.filename for member in members}
    if len(names) != len(members):
        raise UploadRefused("The zip archive names a file twice: give each file a name of its own.")
    return [member for member in members if not member.is_dir()]


def _check_directory(path: Path) -> None:
    """Refuse an archive whose list of members alone would fill the memory, before it is parsed."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_SIZE - 0xFFFF - _END64_SIZE))
        tail = file.read()
    plain = tail[-_END_SIZE:].startswith(_END) and tail.endswith(b"\0\0")
    at = len(tail) - _END_SIZE if plain else tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_SIZE:
        raise UploadUnreadable("The zip archive has no end: it is truncated, send all of it.")
    listed = int.from_bytes(tail[at + 12 : at + 16], "little")
    if tail[at - 20 : at].startswith(_LOCATOR64):
        listed = max(listed, int.from_bytes(tail[at - 36 : at - 28], "little"))
    if listed > LARGEST_DIRECTORY_BYTES:
        raise UploadRefused(
            f"The zip archive's directory takes {listed} bytes, the limit is {LARGEST_DIRECTORY_BYTES}: "
            "send fewer files."
        )


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name.split("/")[0] or not path.parts:
        raise UploadRefused(f"The zip archive holds {name[:80]!r}, a path that leads outside: use relative paths.")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UploadRefused(f"The zip archive holds {name[:80]!r}, a link or special file: send plain files.")
    if member.flag_bits & 0x1:
        raise UploadRefused(f"The zip archive holds {name[:80]!r} encrypted: send it without a password.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UploadRefused(f"The zip archive holds {name[:80]!r} in a compression other than deflate: use deflate.")


def _check_sizes(members: list[zipfile.ZipInfo]) -> None:
    expanded = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if expanded > LARGEST_EXPANDED_BYTES:
        raise UploadRefused(f"The zip archive expands to {expanded} bytes, the limit is {LARGEST_EXPANDED_BYTES}.")
    if expanded > RATIO_MATTERS_FROM_BYTES and expanded > LARGEST_RATIO * packed:
        raise UploadRefused(
            f"The zip archive expands from {packed} to {expanded} bytes, more than {LARGEST_RATIO}-fold: "
            "it looks like a bomb, send it without compression."
        )
