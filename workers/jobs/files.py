"""Files on their way between the store and a job's scratch folder, checked in both directions."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.catalogue.store import CHUNK_BYTES
from app.domain.errors import StoreUnavailable
from app.domain.models import ModelManifest
from app.domain.preprocessing import ImagePreprocessing
from app.domain.variants import Artifact, Variant
from workers.jobs.bench import Bench
from workers.jobs.rows import Chosen
from workers.outputs import output_path
from workers.stage_records.common import RowSource
from workers.trees import remove_tree


async def bring(bench: Bench, path: str, *, name: str, sha256: str) -> str:
    """Copy an object of the store to `in/<name>` in the scratch folder, unless it is there; return that relative path.

    Raises:
        StoreUnavailable: its bytes are not those that were stored.
    """
    if bench.brought.get(name) == sha256:
        return f"in/{name}"
    folder = bench.scratch / "in"
    folder.mkdir(exist_ok=True)
    written = await bench.workshop.store.fetch(path, folder / name)
    if written.sha256 != sha256:
        raise StoreUnavailable(f"The store's copy of {name!r} is damaged: its SHA-256 is not the recorded one.")
    bench.brought[name] = sha256
    return f"in/{name}"


async def bring_artifact(bench: Bench, variant: Variant) -> str:
    """Copy a variant's artifact into the scratch folder."""
    path = bench.workshop.variants.artifact_path(variant)
    return await bring(bench, path, name=f"{variant.name}.onnx", sha256=variant.artifact.sha256)


async def bring_upload(bench: Bench, model: ModelManifest) -> str:
    """Copy a model's upload, as received, into the scratch folder."""
    path = f"{bench.workshop.models.folder(model.name, model.version)}/upload/{model.upload.file}"
    return await bring(bench, path, name=f"upload-{model.upload.file}", sha256=model.upload.sha256)


async def bring_rows(bench: Bench, chosen: Chosen, *, preprocessing: ImagePreprocessing | None) -> RowSource:
    """Copy a dataset into the scratch folder and say which of its rows are meant."""
    shelf, dataset = bench.workshop.datasets, chosen.dataset
    path = f"{shelf.folder(dataset.name, dataset.version)}/upload/{dataset.upload.file}"
    name = f"{dataset.name}-{dataset.version}"
    brought = await bring(bench, path, name=name, sha256=dataset.upload.sha256)
    return RowSource(path=brought, format=dataset.format, rows=chosen.rows, preprocessing=preprocessing)


def inspect(bench: Bench, relative: str) -> Artifact:
    """Check that a stage's output is a plain file of its own, and return it as an artifact named by its hash."""
    with output_path(bench.scratch, relative).open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        size, sha256 = file.tell(), digest.hexdigest()
    return Artifact(file=f"{sha256}.onnx", size_bytes=size, sha256=sha256)


def keep_only(bench: Bench, *outputs: str) -> None:
    """Go on in a fresh scratch folder that holds these outputs of a stage, each checked, and nothing else it left."""
    fresh = bench.scratch.with_name("checked")
    fresh.mkdir(mode=0o700)
    for relative in outputs:
        file = output_path(bench.scratch, relative)
        (fresh / relative).parent.mkdir(parents=True, exist_ok=True)
        file.rename(fresh / relative)
    remove_tree(bench.scratch)
    bench.scratch, bench.brought = fresh, {}


@contextmanager
def apart(bench: Bench) -> Iterator[Path]:
    """Let stages that may execute what was uploaded work in a scratch folder of their own, which then goes.

    Yields the scratch folder that is out of their reach meanwhile, for `hand_over`.
    """
    home, brought = bench.scratch, bench.brought
    bench.scratch, bench.brought = home.with_name("apart"), {}
    bench.scratch.mkdir(mode=0o700)
    try:
        yield home
    finally:
        remove_tree(bench.scratch)
        bench.scratch, bench.brought = home, brought


def hand_over(bench: Bench, output: str, *, to: Path) -> None:
    """Move a stage's output, checked, to the same place in another scratch folder."""
    file = output_path(bench.scratch, output)
    (to / output).parent.mkdir(parents=True, exist_ok=True)
    file.rename(to / output)
