"""The dataset formats: one line each. A file's format is told by its content, never by its name."""

from collections.abc import Callable
from pathlib import Path

from app.domain.datasets import DatasetFormat
from app.domain.errors import UploadUnreadable
from workers import archives
from workers.data.image_folder import open_image_folder
from workers.data.npz import SUFFIX, open_npz
from workers.data.rows import Dataset
from workers.data.safetensors_file import open_safetensors

FORMATS: dict[DatasetFormat, Callable[[Path], Dataset]] = {
    DatasetFormat.NPZ: open_npz,
    DatasetFormat.SAFETENSORS: open_safetensors,
    DatasetFormat.IMAGE_FOLDER: open_image_folder,
}

_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_HEADER_LENGTH_BYTES = 8


def open_dataset(path: Path, *, format: DatasetFormat | None = None) -> Dataset:  # noqa: A002
    """Read what a dataset file declares about itself; without `format` it is detected.

    Raises:
        UploadUnreadable: no format Octet knows, or broken.
        UploadRefused: an archive that is not safe to read.
        DatasetUnfit: its arrays or images cannot be used as rows.
    """
    return FORMATS[format or detect(path)](path)


def detect(path: Path) -> DatasetFormat:
    """Tell the format from the file's first bytes and, in a zip, its members' names."""
    with path.open("rb") as file:
        start = file.read(_HEADER_LENGTH_BYTES + 1)
    if not start:
        raise UploadUnreadable("The dataset is an empty file: send an .npz, a .safetensors or a .zip of images.")
    if start.startswith(_ZIP_STARTS):
        return _detect_in_zip(path)
    length = int.from_bytes(start[:_HEADER_LENGTH_BYTES], "little")
    if start[_HEADER_LENGTH_BYTES:] == b"{" and length < path.stat().st_size:
        return DatasetFormat.SAFETENSORS
    raise UploadUnreadable("The dataset is no file that Octet reads: send an .npz, a .safetensors or a .zip of images.")


def _detect_in_zip(path: Path) -> DatasetFormat:
    with archives.open_archive(path, limits=archives.DATASETS) as archive:
        members = archives.checked_members(archive, limits=archives.DATASETS)
    if not members:
        raise UploadUnreadable("The zip archive holds no file: send arrays as .npz, or images in folders.")
    arrays = all(member.filename.endswith(SUFFIX) for member in members)
    return DatasetFormat.NPZ if arrays else DatasetFormat.IMAGE_FOLDER
