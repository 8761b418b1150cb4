"""Zip archives from strangers, models and datasets alike: checked before a member is read."""

import errno
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from app.domain.errors import UploadRefused, UploadUnreadable

# Deflate reaches 1032:1 on zeros, which a mask may be; a small archive may, a large one is a bomb.
MOST_FOLD = 100
_CHUNK_BYTES = 2**20
_END = b"PK\x05\x06"
_END_SIZE = 22
_LOCATOR64 = b"PK\x06\x07"
_END64 = b"PK\x06\x06"
_END64_SIZE = 56 + 20
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """What an archive may hold.

    Attributes:
        directory_bytes: of its list of members, which the memory must hold.
        unpacked_bytes: of all members together.
        bomb_from_bytes: an archive that unpacks to more than this, and to a hundred times its size, is a bomb.
    """

    members: int
    directory_bytes: int
    unpacked_bytes: int
    bomb_from_bytes: int


MODELS = ArchiveLimits(
    members=20_000, directory_bytes=8 * 2**20, unpacked_bytes=16 * 2**30, bomb_from_bytes=256 * 2**20
)
DATASETS = ArchiveLimits(members=200_000, directory_bytes=64 * 2**20, unpacked_bytes=256 * 2**30, bomb_from_bytes=2**30)


@contextmanager
def open_archive(path: Path, *, limits: ArchiveLimits) -> Iterator[zipfile.ZipFile]:
    """Open a zip, with what is broken inside, now or while it is read, told as `UploadUnreadable`.

    Raises:
        UploadRefused: its list of members alone is over the limit.
    """
    _check_directory(path, limits)
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _BROKEN as error:
        # an offset outside the file is an "invalid argument" to seek; every other OSError is the machine's
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise UploadUnreadable(f"The zip archive is broken ({error}): make it again and send all of it.") from error


def checked_members(archive: zipfile.ZipFile, *, limits: ArchiveLimits) -> list[zipfile.ZipInfo]:
    """List the archive's files, without folders, after checking every name, kind and size.

    Raises:
        UploadRefused: a path that leads outside, a link, an encrypted or repeated member, or a bomb.
    """
    members = archive.infolist()
    if len(members) > limits.members:
        raise UploadRefused(
            f"The zip archive has {len(members):,} members, the limit is {limits.members:,}: send fewer files."
        )
    for member in members:
        _check_member(member)
    _check_sizes(members, limits)
    names = {member.filename for member in members}
    if len(names) != len(members):
        raise UploadRefused("The zip archive names a file twice: give each file a name of its own.")
    return [member for member in members if not member.is_dir()]


def unpack(archive: zipfile.ZipFile, folder: Path, *, limits: ArchiveLimits) -> None:
    """Write an archive's files below `folder`, as many bytes as it declared at most.

    Raises:
        UploadRefused: see `checked_members`; or a member holds more than it declares.
        UploadUnreadable: a file where another one's folder should be.
    """
    for member in checked_members(archive, limits=limits):
        target = folder / PurePosixPath(member.filename)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(archive, member, target)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise UploadUnreadable(
                f"The zip archive holds {member.filename[:80]!r} as a file and as a folder: make it again."
            ) from error


def _check_directory(path: Path, limits: ArchiveLimits) -> None:
    """Refuse an archive whose list of members alone would fill the memory, before it is parsed."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_SIZE - 0xFFFF - _END64_SIZE))
        tail = file.read()
    plain = tail[-_END_SIZE:].startswith(_END) and tail.endswith(b"\0\0")
    at = len(tail) - _END_SIZE if plain else tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_SIZE:
        raise UploadUnreadable(
            "The upload is a zip archive (as .pt2 and .npz files are) without an end: it is truncated, send all of it."
        )
    listed = int.from_bytes(tail[at + 12 : at + 16], "little")
    if tail[at - 20 : at].startswith(_LOCATOR64) and tail[at - 76 : at].startswith(_END64):
        listed = int.from_bytes(tail[at - 36 : at - 28], "little")  # what zipfile takes then
    if listed > limits.directory_bytes:
        raise UploadRefused(
            f"The zip archive's directory takes {listed:,} bytes, the limit is {limits.directory_bytes:,}: "
            "send fewer files."
        )


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if leads_outside(name):
        raise UploadRefused(f"The zip archive holds {name[:80]!r}, a path that leads outside: use relative paths.")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UploadRefused(f"The zip archive holds {name[:80]!r}, a link or special file: send plain files.")
    if member.flag_bits & 0x1:
        raise UploadRefused(f"The zip archive holds {name[:80]!r} encrypted: send it without a password.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UploadRefused(f"The zip archive holds {name[:80]!r} in a compression other than deflate: use deflate.")


def leads_outside(name: str) -> bool:
    """Whether a path in an archive is not one below the archive's own folder, on any system."""
    path = PurePosixPath(name)
    drive = ":" in name.split("/", maxsplit=1)[0]
    return path.is_absolute() or drive or ".." in path.parts or "\\" in name or "\0" in name or not path.parts


def _check_sizes(members: list[zipfile.ZipInfo], limits: ArchiveLimits) -> None:
    unpacked = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if unpacked > limits.unpacked_bytes:
        raise UploadRefused(
            f"The zip archive expands to {unpacked:,} bytes, the limit is {limits.unpacked_bytes:,}: send less."
        )
    if unpacked > limits.bomb_from_bytes and unpacked > MOST_FOLD * packed:
        raise UploadRefused(
            f"The zip archive expands from {packed:,} to {unpacked:,} bytes, more than {MOST_FOLD}-fold: "
            "it looks like a bomb, send it without compression."
        )


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    left = member.file_size
    with archive.open(member) as source, target.open("xb") as sink:
        while chunk := source.read(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise UploadRefused(
                    f"The zip archive's {member.filename[:80]!r} holds more than it declares: make the archive again."
                )
            sink.write(chunk)
