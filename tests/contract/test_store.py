"""Every kind of store behaves alike: a folder, and S3 as moto's server speaks it over HTTP."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.catalogue.store import Store, open_store
from app.domain.errors import StoreUnavailable, UploadTooLarge
from app.settings import S3
from tests.running import new_bucket, running_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as options:
        yield options


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    options = request.getfixturevalue("s3")
    return open_store(f"s3://{new_bucket(options)}/some/prefix", s3=options)


def test_an_object_is_created_once(store: Store) -> None:
    async def scenario() -> None:
        assert await store.create("models/m/1/manifest.json", b"first")
        assert not await store.create("models/m/1/manifest.json", b"second")
        assert await store.read("models/m/1/manifest.json") == b"first"

    asyncio.run(scenario())


def test_of_many_writers_at_once_one_creates(store: Store) -> None:
    async def scenario() -> list[bool]:
        return await asyncio.gather(*(store.create("claim", str(writer).encode()) for writer in range(8)))

    assert asyncio.run(scenario()).count(True) == 1


def test_a_missing_object_reads_as_none(store: Store) -> None:
    assert asyncio.run(store.read("models/nobody")) is None


def test_a_stream_is_hashed_on_the_way_and_read_back_in_ranges(store: Store, tmp_path: Path) -> None:
    data = secrets.token_bytes(11_000_000)

    async def scenario() -> None:
        written = await store.write("models/m/1/upload/big", _pieces(data))
        assert (written.size_bytes, written.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        middle = b"".join([chunk async for chunk in store.stream("models/m/1/upload/big", start=5, end=9_000_000)])
        assert middle == data[5:9_000_000]
        assert await store.fetch("models/m/1/upload/big", tmp_path / "copy") == written

    asyncio.run(scenario())
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.parametrize("size", [100, 20_000_000])
def test_a_stream_over_its_limit_leaves_nothing_behind(store: Store, size: int) -> None:
    async def scenario() -> None:
        with pytest.raises(UploadTooLarge):
            await store.write("models/m/1/upload/big", _pieces(bytes(size)), limit=size - 1)
        assert await store.read("models/m/1/upload/big") is None

    asyncio.run(scenario())


def test_a_stream_that_breaks_off_leaves_nothing_behind(store: Store) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(9_000_000)
        raise ConnectionResetError("the client left")

    async def scenario() -> None:
        with pytest.raises((ConnectionResetError, StoreUnavailable)):
            await store.write("models/m/1/upload/big", broken())
        assert await store.read("models/m/1/upload/big") is None

    asyncio.run(scenario())


def test_folders_and_files_are_listed_one_level_deep(store: Store) -> None:
    async def scenario() -> None:
        for path in ("models/a/1/claim", "models/a/2/claim", "models/a/routing/1.json", "models/b/1/claim"):
            await store.create(path, b"")
        assert sorted(await store.folders("models")) == ["a", "b"]
        assert sorted(await store.folders("models/a")) == ["1", "2", "routing"]
        assert await store.files("models/a/routing") == ["1.json"]
        assert await store.folders("datasets") == []

    asyncio.run(scenario())


def test_a_deleted_folder_is_gone_and_its_neighbours_stay(store: Store) -> None:
    async def scenario() -> None:
        for path in ("models/a/1/claim", "models/a/1/upload/x", "models/a/10/claim"):
            await store.create(path, b"x")
        await store.delete("models/a/1")
        assert await store.read("models/a/1/upload/x") is None
        assert await store.read("models/a/10/claim") == b"x"
        assert await store.folders("models/a") == ["10"]

    asyncio.run(scenario())


def test_a_store_that_does_not_answer_is_unavailable() -> None:
    nowhere = S3(endpoint_url="http://127.0.0.1:9", region="x", access_key_id="a", secret_access_key="b")  # noqa: S106
    with pytest.raises(StoreUnavailable):
        asyncio.run(open_store("s3://bucket", s3=nowhere).read("x"))


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 700_000):
        yield data[start : start + 700_000]
