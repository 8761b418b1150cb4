"""The catalogue in a folder: variants, failed imports, and the local copies that runners load."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from app.api import examples
from app.catalogue.cache import ArtifactCache
from app.catalogue.shelf import Entry
from app.catalogue.store import Store, open_store
from app.catalogue.variants import Variants
from app.domain.errors import ModelNotReady, NameTaken, StoreFull, StoreUnavailable, UploadUnreadable
from app.domain.models import ImportFailure, ModelManifest, Upload
from app.domain.reports import Report
from app.domain.variants import Variant
from tests.graphs import conv_classifier
from tests.serving import variant_of

NOW = datetime.now(UTC)
REPORT = TypeAdapter(Report).validate_python(examples.REPORT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Store:
    return open_store(str(folder))


def made(tmp_path: Path, *, seed: int) -> Variant:
    """Return a variant whose artifact lies in `tmp_path`."""
    return replace(variant_of(conv_classifier(seed=seed), tmp_path, name="int8"), job=f"{seed:032x}")


def publish(store: Store, variant: Variant, tmp_path: Path, *, numbered: bool = False) -> Variant:
    variants = Variants(store)
    call = variants.publish_numbered if numbered else variants.publish
    with (tmp_path / variant.artifact.file).open("rb") as artifact:
        return asyncio.run(call(variant, artifact=artifact, report=REPORT))


def files_of(folder: Path, variant: Variant) -> list[str]:
    below = folder / "models" / variant.model / str(variant.version) / "variants" / variant.name
    return sorted(path.name for path in below.iterdir())


def test_a_second_variant_of_a_name_leaves_nothing_in_the_first_ones_folder(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    first = publish(store, made(tmp_path, seed=1), tmp_path)
    before = files_of(folder, first)
    with pytest.raises(NameTaken):
        publish(store, made(tmp_path, seed=2), tmp_path)
    second = publish(store, made(tmp_path, seed=2), tmp_path, numbered=True)
    assert (files_of(folder, first), second.name) == (before, "int8-2")


def test_publishing_again_for_the_same_job_changes_nothing(store: Store, tmp_path: Path) -> None:
    first = publish(store, made(tmp_path, seed=1), tmp_path)
    again = publish(store, replace(made(tmp_path, seed=1), created_at=NOW), tmp_path)
    assert again == first


def entry_of(failure: ImportFailure | None) -> Entry[ModelManifest]:
    upload = Upload(name="net", version=1, file="net.onnx", size_bytes=1, sha256="0" * 64, created_at=NOW, job="1" * 32)
    return Entry(upload=upload, failure=failure)


def test_a_job_that_waited_for_a_failed_import_fails_for_its_reason() -> None:
    failed = entry_of(ImportFailure(code="upload_unreadable", message="It is no ONNX.", failed_at=NOW))
    with pytest.raises(UploadUnreadable, match=r"net:1 could not be imported: It is no ONNX\."):
        failed.imported()
    with pytest.raises(ModelNotReady):
        failed.ready()
    with pytest.raises(ModelNotReady, match="was cancelled"):
        entry_of(ImportFailure(code="cancelled", message="It was cancelled.", failed_at=NOW)).imported()
    with pytest.raises(ModelNotReady, match="still being imported"):
        entry_of(None).imported()


def cache_of(store: Store, tmp_path: Path, *, most_bytes: int = 2**30) -> ArtifactCache:
    return ArtifactCache(store, Variants(store), folder=tmp_path / "cache", most_bytes=most_bytes)


def test_a_copy_is_brought_once_and_again_when_it_is_damaged(store: Store, tmp_path: Path) -> None:
    variant = publish(store, made(tmp_path, seed=1), tmp_path)
    cache = cache_of(store, tmp_path)
    copy = asyncio.run(cache.fetch(variant))
    whole, first = copy.read_bytes(), copy.stat().st_ino
    assert asyncio.run(cache.fetch(variant)).stat().st_ino == first
    copy.write_bytes(b"damaged")
    assert asyncio.run(cache.fetch(variant)).read_bytes() == whole


def test_many_at_once_fetch_the_same_artifact(store: Store, tmp_path: Path) -> None:
    variant = publish(store, made(tmp_path, seed=1), tmp_path)

    async def fetch_all() -> list[Path]:
        return await asyncio.gather(*(cache_of(store, tmp_path).fetch(variant) for _ in range(8)))

    assert len(set(asyncio.run(fetch_all()))) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_copy_used_longest_ago_gives_way(store: Store, tmp_path: Path) -> None:
    variants = [replace(made(tmp_path, seed=seed), name=f"v{seed}") for seed in (1, 2, 3)]
    size = max(variant.artifact.size_bytes for variant in variants)
    cache = cache_of(store, tmp_path, most_bytes=2 * size)
    copies = [asyncio.run(cache.fetch(publish(store, variant, tmp_path))) for variant in variants[:2]]
    os.utime(copies[1], (1, 1))
    third = asyncio.run(cache.fetch(publish(store, variants[2], tmp_path)))
    assert [copy.exists() for copy in (*copies, third)] == [True, False, True]


def test_what_a_killed_process_left_half_written_is_swept(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (old, new) = (folder / "old.part", folder / "new.part")
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1, 1))
    cache_of(store, tmp_path).sweep()
    assert (old.exists(), new.exists()) == (False, True)


def test_a_full_local_disk_is_not_blamed_on_the_store(store: Store) -> None:
    async def fetch() -> None:
        await store.create("models/x", bytes(100_000))
        await store.fetch("models/x", Path("/dev/full"))

    with pytest.raises(StoreFull, match="of this machine is full"):
        asyncio.run(fetch())


def test_a_folder_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    async def fetch() -> None:
        await store.create("models/x", b"x")
        await store.fetch("models/x", tmp_path / "missing" / "x")

    with pytest.raises(StoreUnavailable, match="'missing' of this machine"):
        asyncio.run(fetch())


def test_a_lost_object_is_said_to_be_lost(store: Store, tmp_path: Path) -> None:
    async def stream() -> None:
        async for _ in store.stream("models/x", end=1):
            pass

    for call in (stream(), store.fetch("models/x", tmp_path / "x")):
        with pytest.raises(StoreUnavailable, match="has lost 'models/x'"):
            asyncio.run(call)


def test_an_upload_that_breaks_off_is_not_blamed_on_the_store(store: Store) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise ConnectionResetError("the client left")

    with pytest.raises(ConnectionResetError):
        asyncio.run(store.write("models/x", broken()))
    assert asyncio.run(store.read("models/x")) is None
