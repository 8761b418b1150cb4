"""Trials in a real store: kept at once, found again, and gone when their search has published."""

import asyncio
import hashlib
import io
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis as AsyncRedis

from app.catalogue.history import JobHistory
from app.catalogue.shelf import dataset_shelf, model_shelf
from app.catalogue.store import Store, open_store
from app.catalogue.trials import KEPT, Trials, prune
from app.catalogue.variants import Variants
from app.domain.errors import StoreUnavailable
from app.domain.evidence import Interval, LayerSensitivity, Receipt
from app.domain.jobs import Job, JobKind
from app.domain.recipes import Auto, Cast, PtqStatic, Single, WeightOnly
from app.domain.search import StoredTrial, Trial
from app.domain.variants import FLOAT32, Artifact
from app.jobs.live import LiveJobs
from tests.unit.test_domain_records import DATASET, MODEL, UPLOAD
from tests.unit.test_rows import REPORT
from tests.unit.test_search_plan import PARENT
from workers.jobs.bench import Bench, Workshop
from workers.jobs.quantize import quantize
from workers.jobs.search.plan import trials_of
from workers.limits import Limits

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


def test_a_trial_of_a_recipe_that_is_no_longer_taken_is_left_out(store: Store, tmp_path: Path) -> None:
    async def run() -> list[StoredTrial]:
        trials = Trials(store, "a" * 32)
        await keep(trials, finished(PtqStatic(), content=b"int8"), b"int8")
        record = next((tmp_path / "store" / "searches" / ("a" * 32)).glob("*.json"))
        record.write_bytes(record.read_bytes().replace(b'"calibration_rows":300', b'"calibration_rows":0'))
        return await trials.found()

    assert asyncio.run(run()) == []


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


def test_a_search_that_nobody_went_on_with_for_a_week_is_deleted_and_no_other(store: Store, tmp_path: Path) -> None:
    async def run() -> None:
        for key in ("a" * 32, "b" * 32):
            await keep(Trials(store, key), finished(Cast(), content=b"cast"), b"cast")
        long_ago = (NOW - KEPT).timestamp() - 60
        for file in (tmp_path / "store" / "searches" / ("a" * 32)).iterdir():
            os.utime(file, (long_ago, long_ago))
        await prune(store, now=datetime.now(UTC))

    asyncio.run(run())
    assert [path.name for path in (tmp_path / "store" / "searches").iterdir()] == ["b" * 32]


def test_an_old_search_with_a_new_trial_is_kept(store: Store, tmp_path: Path) -> None:
    async def run() -> list[StoredTrial]:
        trials = Trials(store, "a" * 32)
        await keep(trials, finished(Cast(), content=b"cast"), b"cast")
        for file in (tmp_path / "store" / "searches" / ("a" * 32)).iterdir():
            os.utime(file, (0, 0))
        await keep(trials, finished(PtqStatic(), content=None), None)
        await prune(store, now=datetime.now(UTC))
        return await trials.found()

    assert len(asyncio.run(run())) == 2


def test_a_trial_that_another_job_has_deleted_says_so(store: Store, tmp_path: Path) -> None:
    async def run() -> None:
        trials, stored = Trials(store, "a" * 32), finished(Cast(), content=b"cast")
        await keep(trials, stored, b"cast")
        await trials.fetch(stored, tmp_path / "here")
        await Trials(store, "a" * 32).drop()
        await trials.fetch(stored, tmp_path / "there")

    with pytest.raises(StoreUnavailable, match="Another job finished the same search meanwhile: ask again"):
        asyncio.run(run())
    assert (tmp_path / "here").read_bytes() == b"cast"


def test_an_attempt_that_finds_its_variant_published_deletes_the_trials(store: Store, tmp_path: Path) -> None:
    async def run() -> tuple[str, list[StoredTrial]]:
        bench = await bench_of_a_second_attempt(store, tmp_path)
        trials = await trials_of(bench, REQUEST)
        await keep(trials, finished(Cast(), content=b"cast"), b"cast")
        return await quantize(bench), await trials.found()

    assert asyncio.run(run()) == ("best", [])


def test_what_is_published_stands_though_its_trials_cannot_be_found(store: Store, tmp_path: Path) -> None:
    async def run() -> str:
        bench = await bench_of_a_second_attempt(store, tmp_path)
        bench.job = replace(bench.job, calibration="gone:1")
        return await quantize(bench)

    assert asyncio.run(run()) == "best"


REQUEST = Auto(calibration_rows=4)


async def bench_of_a_second_attempt(store: Store, tmp_path: Path) -> Bench:
    """Return the bench of a job whose first attempt published `best` and then lost its worker."""
    models, datasets, variants = model_shelf(store), dataset_shelf(store), Variants(store)
    for shelf, manifest in ((models, MODEL), (datasets, DATASET)):
        upload = replace(UPLOAD, name=manifest.name)
        await shelf.record(upload)
        await shelf.publish(replace(manifest, upload=upload))  # type: ignore[arg-type]
    job = Job(
        id="1" * 32,
        kind=JobKind.QUANTIZE,
        created_at=NOW,
        model="m:1",
        calibration="d:1",
        recipe=REQUEST,
        variant="best",
        attempt=2,
    )
    for name in (FLOAT32, "best"):
        artifact = Artifact(file="a.onnx", size_bytes=1, sha256=hashlib.sha256(b"a").hexdigest())
        variant = replace(PARENT, name=name, artifact=artifact, job=job.id if name == "best" else "0" * 32)
        await variants.publish(variant, artifact=io.BytesIO(b"a"), report=REPORT)
    workshop = Workshop(
        store=store,
        models=models,
        datasets=datasets,
        variants=variants,
        history=JobHistory(store),
        live=LiveJobs(AsyncRedis.from_url("redis://127.0.0.1:9")),
        scratch=tmp_path,
        limits=Limits(memory_bytes=1, scratch_bytes=1, seconds=60),
        allow_unsandboxed=False,
    )
    return Bench(job, workshop)
