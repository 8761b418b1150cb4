"""What uploading a model and uploading a dataset have in common on the command line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

import typer
from rich.filesize import decimal

from app.client import console
from app.client.client import Octet
from app.client.commands.session import follow
from app.client.problems import succeeded
from app.client.records import DatasetVersion, ModelVersion

ROWS_SUFFIXES = frozenset({".npz", ".safetensors", ".zip"})
Version = TypeVar("Version", ModelVersion, DatasetVersion)
ReadableFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)]
UploadName = Annotated[str | None, typer.Option("--name", help="Its name in the catalogue; default: the file's.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is imported.")]


def send(
    octet: Octet, path: Path, upload: Callable[[BinaryIO], Version], *, again: Callable[[str], Version], wait: bool
) -> Version:
    """Upload a file with a bar and, if asked, follow its import and return what became of it."""
    with console.reading(path) as file:
        uploaded = upload(file)
    if not wait:
        return uploaded
    succeeded(follow(octet, octet.job(uploaded.import_job)))
    return again(uploaded.reference)


def dataset_for(octet: Octet, given: str | None) -> str | None:
    """Return the dataset that a word names: itself, or, if it names a file of rows, what that was uploaded as."""
    path = Path(given or "")
    if given is None or path.suffix not in ROWS_SUFFIXES or not path.is_file():
        return given
    name = name_of(path)
    dataset = send(octet, path, lambda file: octet.upload_dataset(file, name=name), again=octet.dataset, wait=True)
    console.say(f"{path} is the dataset {dataset.reference} now.")
    return dataset.reference


def name_of(path: Path) -> str:
    """Return a name for the catalogue made from a file's: `My Model.pt2` becomes `my-model`."""
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("._-")


def facts_of(uploaded: ModelVersion | DatasetVersion) -> list[tuple[str, str]]:
    """Return what is known of every upload."""
    facts = [
        ("name", uploaded.reference),
        ("state", uploaded.state),
        ("file", f"{uploaded.file}, {decimal(uploaded.size_bytes)}"),
        ("sha256", uploaded.sha256),
        ("uploaded", uploaded.created_at.isoformat(timespec="seconds")),
    ]
    return [*facts, ("error", uploaded.error.message)] if uploaded.error else facts
