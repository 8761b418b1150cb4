"""Checkpoints in a real store: whole or not there, the newest that is sound, and gone when their job is final."""

import asyncio
import hashlib
import io
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

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


async def keep(store: Store, step: int, *, job: str = JOB) -> State:
    content = io.BytesIO(f"state {step}".encode())
    return await Checkpoints(store, job).keep(step, content, starts=STARTS, limit_bytes=LIMIT)


def kept(store: Store, *steps: int) -> None:
    async def run() -> None:
        for step in steps:
            await keep(store, step)

    asyncio.run(run())


def fetched(store: Store, to: Path, *, starts: tuple[str, ...] = STARTS) -> State | None:
    return asyncio.run(Checkpoints(store, JOB).fetch(to, starts=starts))


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
    assert sorted(int(path.name.split("-")[0]) for path in folder.iterdir()) == [3, 4]


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
