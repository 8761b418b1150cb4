"""Zip archives from strangers: what they may hold, and how they are unpacked."""

import stat
import zipfile
from pathlib import Path, PurePosixPath

from app.domain.errors import UploadRefused, UploadUnreadable

MAX_MEMBERS = 20_000
MAX_UNPACKED_BYTES = 16 * 2**30
# Weights hardly compress; a large archive that does a hundredfold is a bomb, or a model of zeros.
MAX_RATIO = 100
_RATIO_COUNTS_FROM_BYTES = 256 * 2**20
_CHUNK_BYTES = 2**20


def checked_names(file: zipfile.ZipFile) -> list[str]:
    """Return the names in an archive.

    Raises:
        UploadRefused: a name that leaves the archive's folder, a link, too many members, or a zip bomb.
    """
    members = file.infolist()
    if len(members) > MAX_MEMBERS:
        raise UploadRefused(f"The archive has {len(members):,} members; at most {MAX_MEMBERS:,} are taken.")
    for member in members:
        _check_name(member)
    _check_size(members)
    return [member.filename for member in members]


def unpack(file: zipfile.ZipFile, folder: Path) -> None:
    """Write an archive's files below `folder`, as many bytes as it declared at most.

    Raises:
        UploadRefused: see `checked_names`; or a member holds more than it declares.
        UploadUnreadable: a damaged or encrypted member.
    """
    checked_names(file)
    for member in file.infolist():
        if member.is_dir():
            continue
        target = folder / PurePosixPath(member.filename)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(file, member, target)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, FileExistsError) as error:
            raise UploadUnreadable(
                f"The archive's member {member.filename!r} is damaged, encrypted or there twice: pack it again."
            ) from error


def _check_name(member: zipfile.ZipInfo) -> None:
    name = member.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise UploadRefused(f"The archive's member {name!r} leaves the archive's folder: pack it with plain names.")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind and not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise UploadRefused(f"The archive's member {name!r} is a link or a device: pack the file itself.")


def _check_size(members: list[zipfile.ZipInfo]) -> None:
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_UNPACKED_BYTES:
        raise UploadRefused(f"The archive unpacks to {unpacked:,} bytes; at most {MAX_UNPACKED_BYTES:,} are taken.")
    if unpacked > _RATIO_COUNTS_FROM_BYTES and unpacked > MAX_RATIO * max(packed, 1):
        raise UploadRefused(
            f"The archive unpacks to {unpacked:,} bytes, more than {MAX_RATIO} times its size, as a zip bomb does: "
            "pack it without compression."
        )


def _write(file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    left = member.file_size
    with file.open(member) as source, target.open("xb") as sink:
        while chunk := source.read(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise UploadRefused(f"The archive's member {member.filename!r} holds more than it declares.")
            sink.write(chunk)
