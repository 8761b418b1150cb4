"""Trials in a real store: kept at once, found again, and gone when their search has published."""

import asyncio
import hashlib
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.catalogue.store import Store, open_store
from app.catalogue.trials import Trials
from app.domain.errors import StoreUnavailable
from app.domain.evidence import Interval, LayerSensitivity, Receipt
from app.domain.recipes import Cast, PtqStatic, Single, WeightOnly
from app.domain.search import StoredTrial, Trial

NOW = datetime.now(UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def finished(recipe: Single, *, content: bytes | None, after_seconds: int = 0) -> StoredTrial:
    """Return a trial's record; one without content has failed."""
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]
    if content is None:
        trial = Trial(key=key, recipe=recipe, failure="It could not be made.")
        return StoredTrial(trial=trial, finished_at=NOW + timedelta(seconds=after_seconds), libraries={})
    trial = Trial(
        key=key,
        recipe=recipe,
        artifact_sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        speedup=2.0,
        drop=Interval(value=0.0, low=-0.01, high=0.01),
    )
    return StoredTrial(
        trial=trial,
        finished_at=NOW + timedelta(seconds=after_seconds),
        libraries={"nncf": "3.4"},
        metric="top1",
        receipt=Receipt(layers=(), fallbacks=("conv1",), conversion_share=0.1, conversions=()),
    )


async def keep(trials: Trials, stored: StoredTrial, content: bytes | None) -> None:
    await trials.keep(stored, artifact=io.BytesIO(content) if content is not None else None)


def test_what_was_kept_is_found_again_in_the_order_it_ended(store: Store) -> None:
    async def run() -> list[StoredTrial]:
        first = Trials(store, "a" * 32)
        await keep(first, finished(PtqStatic(), content=b"int8", after_seconds=2), b"int8")
        await keep(first, finished(Cast(), content=b"cast", after_seconds=1), b"cast")
        await keep(first, finished(WeightOnly(), content=None, after_seconds=3), None)
        return await Trials(store, "a" * 32).found()

    found = asyncio.run(run())
    assert [stored.trial.recipe for stored in found] == [Cast(), PtqStatic(), WeightOnly()]
    assert found[1] == finished(PtqStatic(), content=b"int8", after_seconds=2)


def test_another_search_does_not_find_them(store: Store) -> None:
    async def run() -> list[StoredTrial]:
        await keep(Trials(store, "a" * 32), finished(Cast(), content=b"cast"), b"cast")
        return await Trials(store, "b" * 32).found()

    assert asyncio.run(run()) == []


def test_a_trial_whose_artifact_is_gone_counts_as_not_finished(store: Store, tmp_path: Path) -> None:
    async def run() -> list[StoredTrial]:
        trials, stored = Trials(store, "a" * 32), finished(Cast(), content=b"cast")
        await keep(trials, stored, b"cast")
        (tmp_path / "store" / trials.artifact_path(stored)).unlink()
        return await trials.found()

    assert asyncio.run(run()) == []


def test_an_artifact_that_is_not_the_recorded_one_is_refused(store: Store) -> None:
    with pytest.raises(StoreUnavailable, match="changed"):
        asyncio.run(keep(Trials(store, "a" * 32), finished(Cast(), content=b"cast"), b"other"))


def test_a_record_that_cannot_be_read_is_left_out(store: Store, tmp_path: Path) -> None:
    async def run() -> list[StoredTrial]:
        trials = Trials(store, "a" * 32)
        await keep(trials, finished(Cast(), content=b"cast"), b"cast")
        (tmp_path / "store" / "searches" / ("a" * 32) / "broken.json").write_bytes(b"{")
        return await trials.found()

    assert len(asyncio.run(run())) == 1


def test_the_layers_of_a_base_are_kept_beside_its_trial(store: Store) -> None:
    layers = (LayerSensitivity(name="conv1", kind="Conv", sqnr_db=30.0, drop=None, cost_microseconds=2.0),)

    async def run() -> tuple[object, object]:
        trials = Trials(store, "a" * 32)
        before = await trials.sensitivity("0" * 16)
        await trials.keep_sensitivity("0" * 16, layers)
        return before, await trials.sensitivity("0" * 16)

    assert asyncio.run(run()) == (None, layers)


def test_nothing_is_left_of_a_search_that_has_published(store: Store, tmp_path: Path) -> None:
    async def run() -> None:
        trials = Trials(store, "a" * 32)
        await keep(trials, finished(Cast(), content=b"cast"), b"cast")
        await trials.keep_sensitivity("0" * 16, ())
        await trials.drop()

    asyncio.run(run())
    assert not (tmp_path / "store" / "searches").exists()
