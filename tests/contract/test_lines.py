"""What a gateway makes of a runner that breaks off, talks nonsense, hangs in one lane or lacks an instance."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import DeadlineExceeded, OctetError, RunnerCrashed, VariantNotReady
from app.domain.runners import Answer, Attach, Infer
from app.domain.serving import Knobs
from app.serving.line import Line, LineLost, Question
from app.serving.segments import Board, Segment, SegmentPool
from app.serving.terms import PoolLimits
from app.wire import encode, to_runner
from tests.serving import (
    FOREVER,
    Watch,
    both_loops,
    files_left,
    gateway,
    hosting,
    pids,
    spinner,
    turns,
    until,
    variant_of,
)
from workers.runners.segments import Board as RunnersBoard

pytestmark = pytest.mark.anyio
anyio_backend = both_loops


@dataclass(kw_only=True)
class Owner:
    """Keeps segments for a line, and what it was told of it."""

    segments: SegmentPool = field(default_factory=lambda: SegmentPool(dropped=lambda _: None))
    mistrusts: int = 0
    changes: int = 0

    def left(self, segment: Segment) -> None:
        self.segments.leave(segment)

    def overflowed(self, size_bytes: int) -> None:
        del size_bytes

    def mistrusted(self, line: Line) -> None:
        del line
        self.mistrusts += 1

    def changed(self, line: Line) -> None:
        del line
        self.changes += 1


@asynccontextmanager
async def line(owner: Owner) -> AsyncIterator[tuple[Line, socket.socket]]:
    """Yield a line and the end of it that a runner would have."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    board = RunnersBoard()
    made = Line(1, ours, Board(os.dup(board.descriptor)), owner=owner)
    os.close(board.descriptor)
    with theirs:
        yield made, theirs
        made.close()
    owner.segments.close()


def question(segment: Segment) -> Question:
    return Question(segment=segment, form="tensors", rows=1, parts=(), outputs_at=64, deadline_ns=2**62, priority=0)


async def asked(asking: Line, segment: Segment) -> asyncio.Task[Any]:
    task = asyncio.create_task(asking.ask(question(segment), alone=False))
    await until(lambda: asking.in_flight == 1)
    return task


async def test_a_runner_that_talks_nonsense_is_reported_and_its_memory_not_used_again() -> None:
    owner = Owner()
    async with line(owner) as (made, theirs):
        segment = owner.segments.take(1)
        waiting = await asked(made, segment)
        theirs.send(b"\x00nonsense")
        with pytest.raises(LineLost):
            await waiting
        owner.segments.leave(segment)
        assert owner.segments.take(1) is not segment
    assert (owner.mistrusts, owner.changes) == (1, 1)


async def test_a_runner_that_is_gone_is_not_reported_but_its_memory_is_not_used_again() -> None:
    owner = Owner()
    async with line(owner) as (made, theirs):
        segment = owner.segments.take(1)
        waiting = await asked(made, segment)
        theirs.close()
        with pytest.raises(LineLost):
            await waiting
        owner.segments.leave(segment)
        assert owner.segments.take(1) is not segment
    assert (owner.mistrusts, owner.changes) == (0, 1)


async def test_a_segment_that_could_not_be_shown_to_a_runner_is_shown_with_the_next_request() -> None:
    owner = Owner()
    async with line(owner) as (made, theirs):
        segment = owner.segments.take(1)
        with files_left(0), pytest.raises(VariantNotReady, match="open more files"):
            await made.ask(question(segment), alone=False)
        assert (segment.users, made.in_flight) == (1, 0)
        waiting = await asked(made, segment)
        assert [type(to_runner(theirs.recv(2**16))) for _ in range(2)] == [Attach, Infer]
        waiting.cancel()


async def test_an_answer_whose_memory_did_not_come_with_it_is_not_read_from_elsewhere() -> None:
    owner = Owner()
    async with line(owner) as (made, theirs):
        waiting = await asked(made, owner.segments.take(1))
        answer = Answer(id=1, outputs=(), overflow_bytes=2**20, queue_seconds=0, compute_seconds=0, rows=1)
        theirs.send(encode(answer))
        with pytest.raises(RunnerCrashed, match="cannot be read"):
            await waiting


async def test_a_runner_of_which_one_lane_hangs_is_killed_though_it_answers_others(tmp_path: Path) -> None:
    variant, watch = variant_of(spinner(), tmp_path), Watch()
    limits = PoolLimits(threads=1, request_timeout_seconds=2)
    two_lanes = Knobs(mode="throughput", streams=2, threads=2, max_batch_size=1)
    async with hosting(tmp_path, watch=watch, limits=limits) as host, gateway(host, limits=limits) as pool:
        await pool.load(variant, knobs=two_lanes)
        hanging = asyncio.create_task(pool.infer(variant, turns(FOREVER)))
        while not watch.restarts:
            with contextlib.suppress(OctetError):
                await pool.infer(variant, turns(1))
        with pytest.raises(DeadlineExceeded):
            await hanging


async def test_a_runner_that_failed_to_start_beside_another_is_started_again_though_nobody_asks(tmp_path: Path) -> None:
    variant, watch = variant_of(spinner(), tmp_path), Watch()
    artifact = tmp_path / variant.artifact.file
    data = artifact.read_bytes()
    watch.on_loaded = lambda: artifact.write_bytes(b"")
    async with hosting(tmp_path, watch=watch) as host, gateway(host) as pool:
        with pytest.raises(VariantNotReady, match="SHA-256"):
            await pool.load(variant, knobs=Knobs(instances=2))
        assert (await pool.infer(variant, turns(1))).outputs["y"] == 1
        watch.on_loaded = lambda: None
        artifact.write_bytes(data)
        await until(lambda: len(pids(host)) == 2)
        await until(lambda: sum(line.open for desk in pool._desks.values() for line in desk.lines) == 2)
