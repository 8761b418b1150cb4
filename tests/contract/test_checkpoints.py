"""Checkpoints in a real store: whole or not there, the newest that is sound, and gone when their job is final."""

import asyncio
import hashlib
import io
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from app.catalogue.checkpoints import KEPT, Checkpoints, KeptStart, KeptStarts, State, prune
from app.catalogue.history import JobHistory
from app.catalogue.store import Store, open_store
from app.domain.errors import StoreUnavailable, UploadTooLarge
from app.domain.jobs import Job, JobKind
from app.domain.variants import Execution

NOW = datetime.now(UTC)
JOB = "a" * 32
STARTS = ("0" * 64,)
LIMIT = 1000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the job's checkpoints lie."""
    return tmp_path / "store" / "checkpoints" / JOB


async def keep(store: Store, step: int, *, job: str = JOB, attempt: int = 1, starts: tuple[str, ...] = STARTS) -> State:
    content = io.BytesIO(f"state {step}".encode())
    return await Checkpoints(store, job, attempt=attempt).keep(step, content, starts=starts, limit_bytes=LIMIT)


def kept(store: Store, *steps: int, attempt: int = 1, starts: tuple[str, ...] = STARTS) -> None:
    async def run() -> None:
        for step in steps:
            await keep(store, step, attempt=attempt, starts=starts)

    asyncio.run(run())


def fetched(store: Store, to: Path, *, starts: tuple[str, ...] = STARTS) -> State | None:
    return asyncio.run(Checkpoints(store, JOB).fetch(to, starts=starts))


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.iterdir())


def state_of(folder: Path, step: int) -> Path:
    (found,) = folder.glob(f"*{step}-*")
    return found


def test_the_newest_state_is_found_again(store: Store, tmp_path: Path) -> None:
    kept(store, 9, 10)
    state = fetched(store, tmp_path / "here")
    assert state is not None
    assert (state.step, (tmp_path / "here").read_bytes()) == (10, b"state 10")


def test_only_the_newest_two_are_kept(store: Store, folder: Path) -> None:
    kept(store, 1, 2, 3, 4)
    assert steps_in(folder) == [3, 4]


def test_a_state_whose_upload_was_broken_off_is_not_there(store: Store, folder: Path, tmp_path: Path) -> None:
    kept(store, 1, 2)
    (state_of(folder, 2) / "record.json").unlink()
    state = fetched(store, tmp_path / "here")
    assert state is not None
    assert state.step == 1


def test_a_state_that_is_half_or_damaged_or_lost_gives_way_to_the_one_before(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    kept(store, 1, 2)
    file = state_of(folder, 2) / "state.safetensors"
    for harm in (lambda: file.write_bytes(b"stat"), lambda: file.write_bytes(b"state 3"), file.unlink):
        harm()
        state = fetched(store, tmp_path / "here")
        assert state is not None
        assert (state.step, (tmp_path / "here").read_bytes()) == (1, b"state 1")


def test_a_record_that_cannot_be_read_is_passed_over(store: Store, folder: Path, tmp_path: Path) -> None:
    kept(store, 1)
    (state_of(folder, 1) / "record.json").write_bytes(b"{")
    assert fetched(store, tmp_path / "here") is None


def test_what_is_left_of_an_upload_broken_off_crowds_out_no_whole_state(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    kept(store, 1, 2)
    (state_of(folder, 2) / "record.json").unlink()
    kept(store, 3)
    state_of(folder, 3).joinpath("state.safetensors").unlink()
    state = fetched(store, tmp_path / "here")
    assert state is not None
    assert state.step == 1


def test_a_record_without_its_state_crowds_out_no_whole_state(store: Store, folder: Path, tmp_path: Path) -> None:
    kept(store, 1, 2, 3)
    for step in (2, 3):
        (state_of(folder, step) / "state.safetensors").unlink()
    kept(store, 1)
    state = fetched(store, tmp_path / "here")
    assert state is not None
    assert state.step == 1


@pytest.mark.parametrize("starts", [STARTS, ("1" * 64,)])
def test_an_attempt_that_begins_anew_keeps_its_own_states(
    starts: tuple[str, ...], store: Store, folder: Path, tmp_path: Path
) -> None:
    kept(store, 900, 1000)
    kept(store, 100, 200, 300, attempt=2, starts=starts)
    assert steps_in(folder) == [200, 300]
    state = fetched(store, tmp_path / "here", starts=starts)
    assert state is not None
    assert state.step == 300


def test_an_attempt_that_was_taken_for_lost_deletes_nothing_of_a_later_one(store: Store, folder: Path) -> None:
    kept(store, 100, attempt=2, starts=("1" * 64,))
    kept(store, 900, 1000, 1100)
    assert steps_in(folder) == [100, 1000, 1100]


def test_a_store_that_is_away_is_told_apart_from_a_state_that_is_lost(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> NoReturn:
        raise StoreUnavailable("The store does not answer.")

    kept(store, 1)
    monkeypatch.setattr(store, "fetch", away)
    with pytest.raises(StoreUnavailable):
        fetched(store, tmp_path / "here")


def test_a_state_that_began_from_other_artifacts_is_no_use(store: Store, tmp_path: Path) -> None:
    kept(store, 1)
    assert fetched(store, tmp_path / "here", starts=("1" * 64,)) is None


def test_a_state_above_the_limit_is_refused_and_the_one_before_stays(store: Store, tmp_path: Path) -> None:
    kept(store, 1)
    with pytest.raises(UploadTooLarge, match="1,000 bytes"):
        asyncio.run(Checkpoints(store, JOB).keep(2, io.BytesIO(b"0" * 1001), starts=STARTS, limit_bytes=LIMIT))
    state = fetched(store, tmp_path / "here")
    assert state is not None
    assert state.step == 1


class _Changing(io.BytesIO):
    """A file that a hostile process writes to whenever somebody begins to read it."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.getbuffer()[:1] = os.urandom(1)
        return super().seek(offset, whence)


def test_a_file_that_changes_while_it_is_stored_leaves_nothing_behind(store: Store, folder: Path) -> None:
    with pytest.raises(StoreUnavailable, match="changed while it was stored"):
        asyncio.run(Checkpoints(store, JOB).keep(1, _Changing(b"0" * 900), starts=STARTS, limit_bytes=LIMIT))
    assert not folder.exists()


def start_of(path: Path, content: bytes) -> KeptStart:
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return KeptStart(recipe="ort ptq_static", sha256=sha256, execution=Execution(), libraries={}, notes=())


def test_other_starts_take_the_place_of_those_before(store: Store, tmp_path: Path) -> None:
    one, other = (start_of(tmp_path / name, name.encode()) for name in ("one", "other"))

    async def run() -> tuple[KeptStarts | None, bool]:
        checkpoints = Checkpoints(store, JOB)
        await checkpoints.keep_starts(KeptStarts(starts=(one,)), [tmp_path / "one"])
        await checkpoints.keep_starts(KeptStarts(starts=(other,)), [tmp_path / "other"])
        return await checkpoints.starts(), await checkpoints.fetch_start(one, tmp_path / "here")

    assert asyncio.run(run()) == (KeptStarts(starts=(other,)), False)


def test_the_starts_are_there_once_all_of_them_are(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "start.onnx"
    path.write_bytes(b"int8")
    start = KeptStart(
        recipe="ort ptq_static",
        sha256=hashlib.sha256(b"int8").hexdigest(),
        execution=Execution(),
        libraries={"onnxruntime": "1"},
        notes=("A note.",),
    )

    async def run() -> tuple[KeptStarts | None, KeptStarts | None]:
        checkpoints = Checkpoints(store, JOB)
        before = await checkpoints.starts()
        await checkpoints.keep_starts(KeptStarts(starts=(start,)), [path])
        await checkpoints.fetch_start(start, tmp_path / "here")
        return before, await checkpoints.starts()

    assert asyncio.run(run()) == (None, KeptStarts(starts=(start,)))
    assert (tmp_path / "here").read_bytes() == b"int8"


def test_a_final_jobs_checkpoints_are_deleted_and_no_others(store: Store, folder: Path) -> None:
    async def run() -> None:
        await keep(store, 1)
        await keep(store, 1, job="b" * 32)
        job = Job(id=JOB, kind=JobKind.QUANTIZE, created_at=NOW).cancel(NOW)
        await JobHistory(store).finish(job)
        await prune(store, JobHistory(store), now=datetime.now(UTC))

    asyncio.run(run())
    assert [path.name for path in folder.parent.iterdir()] == ["b" * 32]


def test_what_nobody_went_on_with_for_a_week_is_deleted(store: Store, folder: Path) -> None:
    kept(store, 1)
    later = datetime.now(UTC) + KEPT
    asyncio.run(prune(store, JobHistory(store), now=later - timedelta(hours=1)))
    assert folder.exists()
    asyncio.run(prune(store, JobHistory(store), now=later + timedelta(hours=1)))
    assert not folder.exists()
