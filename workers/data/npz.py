"""`.npz` files, read row by row, also when deflated. NumPy's own loader would hold a whole array, or unpickle it."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from app.domain.datasets import DatasetFormat
from app.domain.errors import DatasetUnfit, UploadUnreadable
from workers import archives
from workers.data.table import BLOCK_BYTES, Header, Table

SUFFIX = ".npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzColumn:
    """One `.npy` member of the archive at `path`."""

    path: Path
    member: str
    header: Header

    def read(self, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Stream through the member, passing over what is not asked for."""
        header, total = self.header, self.header.shape[0]
        limits = archives.DATASETS
        with archives.open_archive(self.path, limits=limits) as archive, archive.open(self.member) as stream:
            _read_header(stream, name=header.name)
            start, block = 0, _rows_of(b"", header=header)
            for number in numbers:
                if number >= start + len(block):
                    _skip(stream, (number - start - len(block)) * header.row_bytes, name=header.name)
                    count = min(header.block_rows, total - number)
                    data = _take(stream, count * header.row_bytes, name=header.name)
                    start, block = number, _rows_of(data, header=header)
                yield block[number - start]
            if start + len(block) == total and stream.read(1):
                raise UploadUnreadable(f"Array {header.name!r} is longer than its header says: save the file again.")


def open_npz(path: Path) -> Table:
    """Read the headers of the archive's arrays.

    Raises:
        UploadUnreadable: a member is not an array.
        DatasetUnfit: an array that cannot be read as rows.
    """
    columns: dict[str, NpzColumn] = {}
    with archives.open_archive(path, limits=archives.DATASETS) as archive:
        for member in archives.checked_members(archive, limits=archives.DATASETS):
            name = member.filename.removesuffix(SUFFIX)
            with archive.open(member) as stream:
                columns[name] = NpzColumn(path=path, member=member.filename, header=_read_header(stream, name=name))
            _check_length(columns[name].header, member=member)
    return Table.of(columns, format=DatasetFormat.NPZ)


def _check_length(header: Header, *, member: zipfile.ZipInfo) -> None:
    # the member also holds the header: its size is known only roughly, a shorter body surely is an error
    promised = header.row_bytes * (header.shape[0] if header.shape else 1)
    if not header.dtype.hasobject and member.file_size < promised:
        raise UploadUnreadable(
            f"Array {header.name!r} holds {member.file_size} bytes of the {promised} its header promises: "
            "it is truncated, send all of it."
        )


def _read_header(stream: IO[bytes], *, name: str) -> Header:
    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(stream)
        else:
            raise DatasetUnfit(f"Array {name!r} is saved in .npy version {version}: save plain numeric arrays.")
    except ValueError as error:
        raise UploadUnreadable(f"Member {name!r} of the .npz is not an array that can be read ({error}).") from error
    if fortran and len(shape) > 1:
        raise DatasetUnfit(f"Array {name!r} is saved column by column: save np.ascontiguousarray of it.")
    return Header(name=name, dtype=dtype, shape=shape)


def _rows_of(data: bytes, *, header: Header) -> NDArray[Any]:
    rows = np.frombuffer(data, dtype=header.dtype).reshape(-1, *header.shape[1:])
    return rows.astype(header.dtype.newbyteorder("="), copy=False)


def _take(stream: IO[bytes], size: int, *, name: str) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise UploadUnreadable(f"Array {name!r} ends before its last row: the file is truncated, send all of it.")
    return data


def _skip(stream: IO[bytes], size: int, *, name: str) -> None:
    while size > 0:
        size -= len(_take(stream, min(size, BLOCK_BYTES), name=name))
