"""Loading and unloading: who gives way to whom, what other knobs bring, and that nothing is lost or left behind."""

import asyncio
import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx import helper

from app.domain.errors import VariantNotReady
from app.domain.serving import Knobs
from app.domain.variants import Variant
from app.serving.footprint import GROWTH, OVERHEAD_BYTES
from app.serving.terms import PoolLimits
from tests.contract.test_runners import one_node
from tests.graphs import INPUT, conv_classifier, rows, small
from tests.serving import (
    Watch,
    asked,
    both_loops,
    ended,
    figures,
    gateway,
    hosting,
    open_descriptors,
    pid,
    pids,
    stopped,
    until,
    variant_of,
)

pytestmark = pytest.mark.anyio
anyio_backend = both_loops


@pytest.mark.slow
async def test_twenty_loads_and_unloads_leave_nothing_behind(tmp_path: Path) -> None:
    variant, x, runners = variant_of(one_node("Neg", size="k"), tmp_path), np.ones((2, 9), np.float32), list[int]()
    async with hosting(tmp_path) as host, gateway(host) as pool:
        kept = list[tuple[int, int]]()
        gc.collect()  # what other tests left is not this one's
        before = shared_mappings()
        for _ in range(20):
            await asyncio.gather(*(pool.infer(variant, {"x0": x}) for _ in range(5)))
            runners.append(pid(host))
            await pool.unload(variant)
            await until(lambda: not any(desk.lines for desk in pool._desks.values()))
            kept.append((open_descriptors(), shared_mappings()))
        assert all(ended(number) for number in runners)
    assert len(set(runners)) == 20
    assert kept == [(kept[0][0], before)] * 20


async def test_first_requests_share_one_start(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    async with hosting(tmp_path, watch=watch) as host, gateway(host) as pool:
        await asyncio.gather(*(pool.infer(variant, {INPUT: rows(1)}) for _ in range(6)))
        assert len(pids(host)) == 1
        assert pool.ready(variant)
    assert (watch.fetches, watch.restarts) == (1, 0)


async def test_the_least_recently_used_variant_gives_way(tmp_path: Path) -> None:
    first, second, third = (variant_of(conv_classifier(seed=n), tmp_path, name=f"v{n}") for n in range(3))
    async with hosting(tmp_path, limits=PoolLimits(max_loaded=2, threads=1)) as host, gateway(host) as pool:
        for variant in (first, second, first, third):
            await pool.infer(variant, {INPUT: rows(1)})
        assert [held.variant for held in host.held()] == ["v0", "v2"]
        await until(lambda: not pool.ready(second))


def needed_bytes(variant: Variant) -> int:
    return OVERHEAD_BYTES + GROWTH * variant.artifact.size_bytes


async def test_a_variant_gives_way_when_memory_is_short(tmp_path: Path) -> None:
    first, second = (variant_of(conv_classifier(seed=n), tmp_path, name=f"v{n}") for n in range(2))
    limits = PoolLimits(threads=1, total_memory_bytes=needed_bytes(first) + 2**20)
    async with hosting(tmp_path, limits=limits) as host, gateway(host) as pool:
        for variant in (first, second, first):
            await pool.infer(variant, {INPUT: rows(1)})
            assert [held.variant for held in host.held()] == [variant.name]


async def test_variants_that_load_at_once_keep_to_the_memory_together(tmp_path: Path) -> None:
    variants = [variant_of(conv_classifier(seed=n), tmp_path, name=f"v{n}") for n in range(3)]
    limits = PoolLimits(threads=1, total_memory_bytes=needed_bytes(variants[0]) + 2**20)
    async with hosting(tmp_path, limits=limits) as host, gateway(host) as pool:
        asking = asyncio.gather(*(pool.infer(variant, {INPUT: rows(1)}) for variant in variants))
        most = 0
        while not asking.done():
            most = max(most, len(host.held()))
            await asyncio.wait([asking], timeout=0.005)
        assert len(await asking) == 3
    assert most == 1


async def test_a_variant_that_failed_to_start_gives_way(tmp_path: Path) -> None:
    broken, whole = (variant_of(conv_classifier(seed=n), tmp_path, name=f"v{n}") for n in range(2))
    (tmp_path / broken.artifact.file).write_bytes(b"")
    async with hosting(tmp_path, limits=PoolLimits(threads=1, max_loaded=1)) as host, gateway(host) as pool:
        with pytest.raises(VariantNotReady, match="SHA-256"):
            await pool.load(broken)
        assert (await pool.infer(whole, {INPUT: rows(1)}, timeout_seconds=20)).rows == 1
        assert [held.variant for held in host.held()] == ["v1"]


async def test_a_variant_that_can_never_fit_is_refused_with_what_to_do(tmp_path: Path) -> None:
    first, second = (variant_of(conv_classifier(seed=n), tmp_path, name=f"v{n}") for n in range(2))
    limits = PoolLimits(threads=1, total_memory_bytes=needed_bytes(first))
    huge = replace(second, artifact=replace(second.artifact, size_bytes=2**40))
    async with hosting(tmp_path, limits=limits) as host, gateway(host) as pool:
        await pool.load(first)
        with pytest.raises(VariantNotReady, match="raise OCTET_RUNNERS_MEMORY_BYTES"):
            await pool.infer(huge, {INPUT: rows(1)})
        assert [held.variant for held in host.held()] == ["v0"]


async def test_every_runner_of_a_variant_counts_towards_the_memory(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    limits = PoolLimits(threads=1, total_memory_bytes=3 * needed_bytes(variant))
    async with hosting(tmp_path, limits=limits) as host, gateway(host) as pool:
        with pytest.raises(VariantNotReady, match="for 4 runners, but"):
            await pool.load(variant, knobs=Knobs(instances=4))
        await pool.load(variant)
        with pytest.raises(VariantNotReady, match="for 3 runners beside the one that answers now, but"):
            await pool.load(variant, knobs=Knobs(instances=3))
        await pool.load(variant, knobs=Knobs(instances=2))
        assert len(pids(host)) == 2


async def test_a_variant_that_waits_for_room_does_not_hold_up_one_that_fits(tmp_path: Path) -> None:
    busy, large, small = (variant_of(conv_classifier(seed=n), tmp_path, name=f"v{n}") for n in range(3))
    limits = PoolLimits(threads=1, total_memory_bytes=5 * needed_bytes(busy) // 2)
    async with hosting(tmp_path, limits=limits) as host, gateway(host) as pool:
        await pool.load(busy)
        with stopped(pid(host)):
            asking = asyncio.create_task(pool.infer(busy, {INPUT: rows(1)}))
            await until(lambda: asked(pool) == 1)
            waiting = asyncio.create_task(pool.load(large, knobs=Knobs(instances=2)))
            await pool.load(small)
            assert not waiting.done()
        await asyncio.gather(asking, waiting)
        assert "v1" in {held.variant for held in host.held()}


async def test_giving_way_in_turn_fails_no_request(tmp_path: Path) -> None:
    variants = [variant_of(conv_classifier(seed=n), tmp_path, name=f"v{n}") for n in range(3)]
    async with hosting(tmp_path, limits=PoolLimits(max_loaded=1, threads=1)) as host, gateway(host) as pool:
        asking = [pool.infer(variant, {INPUT: rows(2)}) for variant in variants for _ in range(3)]
        assert {answer.rows for answer in await asyncio.gather(*asking)} <= {2, 4, 6}
        assert len(pids(host)) <= 1


async def test_unloading_ends_the_process_and_loading_brings_another(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.infer(variant, {INPUT: rows(1)})
        first = pid(host)
        await pool.unload(variant)
        assert ended(first)
        assert host.held() == ()
        await until(lambda: not pool.ready(variant))
        await pool.load(variant)
        assert pid(host) != first


async def test_unloading_waits_for_requests_in_flight(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg", size="k"), tmp_path)
    x = np.ones((8, 2**18), np.float32)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant)
        with stopped(pid(host)):
            waiting = [asyncio.create_task(pool.infer(variant, {"x0": x})) for _ in range(4)]
            await until(lambda: asked(pool) == 4)
            unloading = asyncio.create_task(pool.unload(variant))
        await unloading
        answers = await asyncio.gather(*waiting)
        assert host.held() == ()
    assert [answer.outputs["y"].shape for answer in answers] == [x.shape] * 4


async def test_a_load_that_is_unloaded_meanwhile_ends(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        loading = asyncio.create_task(pool.load(variant))
        await until(lambda: host.held() != ())
        await pool.unload(variant)
        with pytest.raises(VariantNotReady, match="unloaded while it was loading"):
            await loading


async def test_a_request_is_answered_though_its_variant_is_unloaded_while_it_loads(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        asking = asyncio.create_task(pool.infer(variant, {INPUT: rows(3)}))
        await until(lambda: host.held() != ())
        await pool.unload(variant)
        assert (await asking).rows == 3


async def test_other_knobs_bring_new_runners_before_the_old_ones_go(tmp_path: Path) -> None:
    variant, x, stop = variant_of(one_node("Neg"), tmp_path), np.ones((1, 4), np.float32), asyncio.Event()
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant)
        (old,) = pids(host)

        async def client() -> int:
            answers = 0
            while not stop.is_set() or not answers:
                np.testing.assert_array_equal((await pool.infer(variant, {"x0": x})).outputs["y"], -x)
                answers += 1
            return answers

        clients = [asyncio.create_task(client()) for _ in range(4)]
        await pool.load(variant, knobs=Knobs(instances=2, mode="throughput"))
        assert ended(old)
        stop.set()
        assert all(await asyncio.gather(*clients))
        statuses = await host.statuses()
    assert {status.instance for status in statuses} == {0, 1}
    assert {status.knobs for status in statuses} == {Knobs(instances=2, mode="throughput")}


async def test_a_variant_of_free_sizes_is_measured_with_a_guess(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg", size="k"), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=Knobs(streams=2, threads=2))
        tuning = (await figures(host)).tuning
        answers = await asyncio.gather(
            *(pool.infer(variant, {"x0": np.ones((2, size), np.float32)}) for size in range(1, 9))
        )
    assert {point.streams for point in tuning.curve} == {1, 2}
    assert [answer.outputs["y"].shape for answer in answers] == [(2, size) for size in range(1, 9)]


async def test_a_variant_that_the_guess_does_not_fit_has_what_was_pinned(tmp_path: Path) -> None:
    weights = {"w": np.ones((300, 4), np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    variant = variant_of(small([node], inputs={"x": ("n", "m")}, outputs={"y": ("n", 4)}, weights=weights), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=Knobs(streams=2, threads=2))
        tuning = (await figures(host)).tuning
        answer = await pool.infer(variant, {"x": np.ones((2, 300), np.float32)})
    assert (tuning.curve, tuning.throughput.streams, tuning.throughput.threads) == ((), 2, 2)
    np.testing.assert_array_equal(answer.outputs["y"], np.full((2, 4), 300, np.float32))


async def test_one_runner_measures_for_all_of_a_variant(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=Knobs(instances=3))
        first, *others = await host.statuses()
    assert first.tuning.curve
    assert [status.tuning for status in others] == [first.tuning] * 2


async def test_pinned_streams_are_what_runs_many_requests(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=Knobs(streams=2, threads=2, max_batch_size=2))
        tuning = (await figures(host)).tuning
    assert tuning.throughput.streams == 2
    assert {point.streams for point in tuning.curve} == {1, 2}
    assert max(point.batch for point in tuning.curve) <= 2


async def test_knobs_that_cannot_be_loaded_leave_what_answers(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant)
        (old,) = pids(host)
        (tmp_path / variant.artifact.file).write_bytes(b"")
        with pytest.raises(VariantNotReady, match="SHA-256"):
            await pool.load(variant, knobs=Knobs(mode="latency"))
        assert pids(host) == [old]
        assert (await pool.infer(variant, {INPUT: rows(1)})).rows == 1


async def test_orders_that_cross_leave_one_set_of_runners(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg"), tmp_path)
    others = {child.pid for child in psutil.Process().children()}
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant)
        await asyncio.gather(*(pool.load(variant, knobs=Knobs(max_queue_delay_ms=delay)) for delay in (1, 2)))
        running = {child.pid for child in psutil.Process().children()} - others
        assert running & set(pids(host)) == running
        assert len(running) == 1


async def test_what_is_in_flight_when_the_pool_closes_is_answered(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg", size="k"), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant)
        with stopped(pid(host)):
            waiting = [asyncio.create_task(pool.infer(variant, {"x0": np.ones((2, 9), np.float32)})) for _ in range(9)]
            await until(lambda: asked(pool) == 9)
            closing = asyncio.create_task(pool.aclose())
        await closing
        assert all(task.done() for task in waiting)
        assert {answer.outputs["y"].shape for answer in await asyncio.gather(*waiting)} == {(2, 9)}


async def test_closing_the_pool_leaves_no_process(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=Knobs(instances=2))
        running = pids(host)
    assert len(running) == 2
    assert all(ended(number) for number in running)


@pytest.mark.parametrize("loaded", [False, True])
async def test_closing_while_something_loads_leaves_no_process(tmp_path: Path, loaded: bool) -> None:  # noqa: FBT001
    variant, others = variant_of(conv_classifier(), tmp_path), children()
    async with hosting(tmp_path) as host, gateway(host) as pool:
        if loaded:
            await pool.load(variant)
        before = len(children())
        loading = asyncio.create_task(pool.load(variant, knobs=Knobs(instances=2)))
        await until(lambda: len(children()) > before)
    with pytest.raises(VariantNotReady):
        await loading
    assert children() == others


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def shared_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:octet")
