"""Image folders in a `.zip`: one folder per class. Images stay encoded here; `preprocessing` makes rows of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import ZipInfo

from app.domain.datasets import ArraySpec, DatasetFormat
from app.domain.errors import DatasetUnfit
from workers import archives
from workers.data.rows import LABELS, Row

SUFFIXES = (".jpg", ".jpeg", ".png")
LARGEST_IMAGE_BYTES = 64 << 20
_LEFT_BY_SYSTEMS = ("Thumbs.db", "desktop.ini")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """Images in the order of their paths.

    Attributes:
        files: members of the archive.
        folders: index into `classes` per file; empty if the images are not sorted into at least two folders.
    """

    path: Path
    files: tuple[str, ...]
    folders: tuple[int, ...]
    classes: tuple[str, ...]
    format: DatasetFormat = DatasetFormat.IMAGE_FOLDER
    arrays: tuple[ArraySpec, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.files)

    @property
    def labelled(self) -> bool:
        return bool(self.folders)

    @property
    def labels(self) -> ArraySpec | None:
        return ArraySpec(name=LABELS, dtype="int64", row_shape=()) if self.folders else None

    def name_of(self, number: int) -> str:
        return f"Image {self.files[number][:120]!r}"

    def read(self, numbers: Sequence[int]) -> Iterator[Row]:
        """Yield these images, one in memory at a time."""
        with archives.open_archive(self.path, limits=archives.DATASETS) as archive:
            for number in numbers:
                label = self.folders[number] if self.folders else None
                yield Row(number=number, arrays={}, image=archive.read(self.files[number]), label=label)


def open_image_folder(path: Path) -> ImageFolder:
    """Find the images and their classes; a single folder around everything is not a class.

    Raises:
        DatasetUnfit: no image, a file that is none, an image over the limit, or folders of different depth.
    """
    with archives.open_archive(path, limits=archives.DATASETS) as archive:
        found = archives.checked_members(archive, limits=archives.DATASETS)
    members = [member for member in found if not _is_litter(member.filename)]
    for member in members:
        _check_image(member)
    if not members:
        raise DatasetUnfit(f"The zip archive holds no image: send {', '.join(SUFFIXES)} files, a folder per class.")
    files = tuple(sorted(member.filename for member in members))
    folders = _folders(files)
    classes = tuple(sorted(set(folders)))
    if len(classes) < 2:  # noqa: PLR2004 - one folder says nothing about its images
        return ImageFolder(path=path, files=files, folders=(), classes=())
    index = {name: number for number, name in enumerate(classes)}
    return ImageFolder(path=path, files=files, folders=tuple(index[folder] for folder in folders), classes=classes)


def _is_litter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1].startswith(".") or parts[-1] in _LEFT_BY_SYSTEMS


def _check_image(member: ZipInfo) -> None:
    name = member.filename
    if not name.lower().endswith(SUFFIXES):
        raise DatasetUnfit(
            f"The zip archive holds {name[:120]!r}, which is no image: send {', '.join(SUFFIXES)} alone."
        )
    if member.file_size > LARGEST_IMAGE_BYTES:
        raise DatasetUnfit(
            f"Image {name[:120]!r} takes {member.file_size} bytes, the limit is {LARGEST_IMAGE_BYTES}: shrink it."
        )


def _folders(files: tuple[str, ...]) -> list[str]:
    """Return each file's class folder; the empty name for files that lie in none."""
    paths = [PurePosixPath(file).parts for file in files]
    if len({parts[0] for parts in paths}) == 1 and all(len(parts) > 1 for parts in paths):
        paths = [parts[1:] for parts in paths]
    depths = {len(parts) for parts in paths}
    if depths not in ({1}, {2}):
        raise DatasetUnfit("The images lie in folders of different depth: use one folder per class, images inside.")
    return [parts[0] if len(parts) > 1 else "" for parts in paths]
