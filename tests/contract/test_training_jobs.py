"""The trusted side of training: what it believes of the stage, what it brings to the store, and how it ends it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from redis.asyncio import Redis as AsyncRedis

from app.catalogue.checkpoints import Checkpoints
from app.catalogue.history import JobHistory
from app.catalogue.shelf import dataset_shelf, model_shelf
from app.catalogue.store import open_store
from app.catalogue.variants import Variants
from app.domain.datasets import DatasetFormat
from app.domain.errors import StoreUnavailable, ToolchainFailed, UploadUnreadable
from app.domain.jobs import Job, JobKind
from app.domain.training import TrainingProgress
from app.jobs.live import LiveJobs
from tests import graphs
from tests.contract import hostile
from tests.needs import absent
from tests.running import Redis, wait_until
from workers.confinement import missing_protections
from workers.jobs import patience
from workers.jobs.bench import Bench, Workshop
from workers.jobs.training.keeping import Keeper
from workers.jobs.training.stopping import request_stop, stopped_on_request
from workers.limits import Limits
from workers.measure.row_identity import overlap
from workers.sandbox import run_stage
from workers.stage_records.common import RowSource
from workers.stage_records.importing import ConvertSpec
from workers.stage_records.training import CHECKPOINT_OUTPUT, STOP_INPUT, OverlapSpec

LIMITS = Limits(memory_bytes=2 * 2**30, scratch_bytes=256 * 2**20, seconds=120)
STARTS = ("0" * 64,)
SAID = {
    "step": 3,
    "steps": 10,
    "loss": 0.5,
    "score": None,
    "best_score": None,
    "learning_rate": 0.1,
    "rows_per_second": 100.0,
    "seconds_left": 1.0,
}


def test_a_stage_says_no_number_that_is_none() -> None:
    code = f"""
from app.domain.training import TrainingProgress
from workers.stage_child import Teller
tell = Teller()
tell(float("nan"), "words")
tell.tell(TrainingProgress(**{SAID!r}))
tell.checkpoint(3)
"""
    command = ["sh", "-c", 'exec "$0" -c "$1" 3>&1', sys.executable, code]
    said = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.splitlines()
    assert [json.loads(line) for line in said] == [
        {"progress": None, "step": "words"},
        {"training": SAID},
        {"checkpoint": 3},
    ]
    assert b"NaN" not in b"".join(said)


def heard(scratch: Path, *lines: str) -> tuple[list[TrainingProgress], list[int]]:
    """Return what is believed of a process that says these lines, one at a time, and then fails."""
    if missing := missing_protections():
        absent(f"a kernel with {' and '.join(missing)}")
    told: list[TrainingProgress] = []
    steps: list[int] = []

    async def on_training(progress: TrainingProgress) -> None:
        told.append(progress)

    async def on_checkpoint(step: int) -> None:
        steps.append(step)

    async def ignore(*_: object) -> None:
        return None

    source = f"import os\nfor line in {lines!r}:\n    os.write(3, line.encode() + b'\\n')\nraise ValueError"
    hostile.executing_pt2(scratch / "model.pt2", source)

    async def run() -> None:
        await run_stage(
            "convert",
            ConvertSpec(upload="model.pt2"),
            scratch=scratch,
            limits=LIMITS,
            on_progress=ignore,
            on_log=ignore,
            on_training=on_training,
            on_checkpoint=on_checkpoint,
        )

    with pytest.raises(UploadUnreadable):
        asyncio.run(run())
    return told, steps


def test_where_training_stands_is_passed_on(tmp_path: Path) -> None:
    told, steps = heard(tmp_path, json.dumps({"training": SAID}), json.dumps({"checkpoint": 7}))
    assert (told, steps) == ([TrainingProgress(**SAID)], [7])  # type: ignore[arg-type]


def test_nonsense_about_training_is_passed_over(tmp_path: Path) -> None:
    wrong: list[dict[str, object]] = [
        {"step": 11},
        {"step": -1},
        {"step": 2**70, "steps": 2**71},
        {"step": "3"},
        {"loss": "NaN"},
        {"loss": float("nan")},
        {"learning_rate": float("inf")},
        {"seconds_left": -1.0},
        {"rows_per_second": None},
    ]
    lines = [json.dumps({"training": {**SAID, **each}}) for each in wrong]
    others = [
        '{"training": 3}',
        '{"checkpoint": -1}',
        '{"checkpoint": true}',
        '{"checkpoint": 1e9}',
        '{"training": {}}',
    ]
    assert heard(tmp_path, *lines, *others, "[" * 4000) == ([], [])


async def with_bench(redis: Redis, folder: Path, use: Callable[[Bench], Awaitable[None]]) -> None:
    store = open_store(str(folder / "store"))
    scratch = folder / "scratch"
    for name in ("in", "out"):
        (scratch / name).mkdir(parents=True)
    async with AsyncRedis.from_url(redis.url) as client:
        await client.flushall()
        workshop = Workshop(
            store=store,
            models=model_shelf(store),
            datasets=dataset_shelf(store),
            variants=Variants(store),
            history=JobHistory(store),
            live=LiveJobs(client),
            scratch=scratch,
            limits=LIMITS,
            allow_unsandboxed=False,
        )
        await use(Bench(Job(id="1" * 32, kind=JobKind.QUANTIZE, created_at=datetime.now(UTC)), workshop))


def keeper_of(bench: Bench) -> tuple[Keeper, Checkpoints]:
    checkpoints = Checkpoints(bench.workshop.store, bench.job.id)
    return Keeper(bench, checkpoints, starts=STARTS), checkpoints


async def stored(checkpoints: Checkpoints, to: Path, *, step: int) -> None:
    """Wait until the state of a step is in the store, and fetch it."""
    async with asyncio.timeout(30):
        while True:
            state = await checkpoints.fetch(to, starts=STARTS)
            if state is not None and state.step == step:
                break
            await asyncio.sleep(0.01)


async def logged(bench: Bench, words: str) -> None:
    async with asyncio.timeout(30):
        while True:
            if words in await bench.workshop.live.log(bench.job.id):
                break
            await asyncio.sleep(0.01)


def test_the_newest_state_comes_to_the_store_while_training_goes_on(redis: Redis, tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        keeper, checkpoints = keeper_of(bench)
        async with keeper:
            for step in range(1, 6):
                new = bench.scratch / "out" / "new"
                new.write_bytes(f"state {step}".encode())
                new.rename(bench.scratch / CHECKPOINT_OUTPUT)
                await keeper.take(step)
            await stored(checkpoints, tmp_path / "here", step=5)
        assert (tmp_path / "here").read_bytes() == b"state 5"

    asyncio.run(with_bench(redis, tmp_path, use))


def test_a_link_in_the_place_of_a_state_is_not_followed(redis: Redis, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")

    async def use(bench: Bench) -> None:
        (bench.scratch / CHECKPOINT_OUTPUT).symlink_to(tmp_path / "secret")
        keeper, checkpoints = keeper_of(bench)
        async with keeper:
            await keeper.take(1)
            await logged(bench, "the checkpoint of step 1 was not stored")
        assert await checkpoints.fetch(tmp_path / "here", starts=STARTS) is None

    asyncio.run(with_bench(redis, tmp_path, use))


def test_a_store_that_is_away_costs_a_checkpoint_and_no_training(redis: Redis, tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        (bench.scratch / CHECKPOINT_OUTPUT).write_bytes(b"state")
        keeper, checkpoints = keeper_of(bench)
        async with keeper:
            (tmp_path / "store" / "checkpoints").write_text("in the way")
            await keeper.take(1)
            await logged(bench, "the one before it stays")
        (tmp_path / "store" / "checkpoints").unlink()
        again, checkpoints = keeper_of(bench)
        async with again:
            await again.take(2)
            await stored(checkpoints, tmp_path / "here", step=2)

    asyncio.run(with_bench(redis, tmp_path, use))


async def fail_within(keeper: Keeper) -> None:
    async with keeper:
        await keeper.take(1)
        raise ToolchainFailed("It diverged at once.")


def test_an_upload_under_way_holds_up_the_end_of_no_training(redis: Redis, tmp_path: Path) -> None:
    class Hangs(Checkpoints):
        async def keep(self, *_: object, **__: object) -> NoReturn:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

    begun = asyncio.Event()

    async def use(bench: Bench) -> None:
        (bench.scratch / CHECKPOINT_OUTPUT).write_bytes(b"state")
        async with asyncio.timeout(30), Keeper(bench, Hangs(bench.workshop.store, "1" * 32), starts=STARTS) as keeper:
            await keeper.take(1)
            await begun.wait()

    asyncio.run(with_bench(redis, tmp_path, use))


def test_an_attempt_is_given_up_where_what_was_left_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure of the job: another attempt goes on."""
    calls = 0

    async def away() -> int:
        nonlocal calls
        calls += 1
        raise StoreUnavailable("The store does not answer.")

    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(patience, "_AGAIN_SECONDS", 0.01)
    with pytest.raises(patience.AttemptLost, match=r"left cannot be read: The store does not answer\."):
        asyncio.run(patience.taken_over(away))
    assert calls > 1


def test_a_store_that_comes_back_costs_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([StoreUnavailable("The store does not answer."), None])

    async def read() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "state"

    monkeypatch.setattr(patience, "_AGAIN_SECONDS", 0)
    assert asyncio.run(patience.taken_over(read)) == "state"


def test_a_training_that_fails_waits_for_no_upload(redis: Redis, tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        (bench.scratch / CHECKPOINT_OUTPUT).write_bytes(b"state")
        keeper, checkpoints = keeper_of(bench)
        with pytest.raises(ToolchainFailed):
            await fail_within(keeper)
        assert await checkpoints.fetch(tmp_path / "here", starts=STARTS) is None

    asyncio.run(with_bench(redis, tmp_path, use))


def test_a_wish_to_finish_reaches_the_stage(redis: Redis, tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        async with stopped_on_request(bench):
            assert not (bench.scratch / STOP_INPUT).exists()
            await bench.workshop.live.ask_to_finish(bench.job.id)
            await asyncio.to_thread(wait_until, (bench.scratch / STOP_INPUT).exists)

    asyncio.run(with_bench(redis, tmp_path, use))


def test_a_wish_to_finish_is_told_until_training_ends(redis: Redis, tmp_path: Path) -> None:
    """Whatever a stage has put in the file's place at first: a pipe would be waited for."""

    async def use(bench: Bench) -> None:
        os.mkfifo(bench.scratch / STOP_INPUT)
        async with stopped_on_request(bench):
            await bench.workshop.live.ask_to_finish(bench.job.id)
            await logged(bench, "training could not be told to end, and will be told again")
            (bench.scratch / STOP_INPUT).unlink()
            await asyncio.to_thread(wait_until, (bench.scratch / STOP_INPUT).is_file)

    asyncio.run(with_bench(redis, tmp_path, use))


def test_a_wish_to_finish_makes_no_file_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "in").mkdir(parents=True)
    (tmp_path / "scratch" / STOP_INPUT).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic links"):
        request_stop(tmp_path / "scratch")
    (tmp_path / "scratch" / STOP_INPUT).unlink()
    (tmp_path / "scratch" / "in").rmdir()
    (tmp_path / "scratch" / "in").symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"directory|symbolic links"):
        request_stop(tmp_path / "scratch")
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


def test_rows_that_train_are_found_among_those_that_score_whatever_file_they_are_in(tmp_path: Path) -> None:
    x = graphs.rows(30)
    graphs.save_dataset(tmp_path / "a.npz", x[:20])
    graphs.save_dataset(tmp_path / "b.npz", np.concatenate([x[25:], x[5:8]]))

    def source(file: str, rows: int) -> RowSource:
        return RowSource(path=file, format=DatasetFormat.NPZ, rows=tuple(range(rows)), preprocessing=None)

    found = overlap(OverlapSpec(training=source("a.npz", 20), evaluation=source("b.npz", 8)), tmp_path, lambda *_: None)
    assert (found.count, found.rows) == (3, (5, 6, 7))
