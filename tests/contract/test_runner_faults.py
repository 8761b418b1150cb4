"""What happens when a runner dies, hangs or cannot start: callers get answers or clear errors, and nothing is left."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import app
from app.domain.errors import DeadlineExceeded, QueueFull, RunnerCrashed, VariantNotReady
from app.domain.serving import Knobs
from app.domain.variants import Variant
from app.serving.pool import RunnerPool
from app.serving.terms import PoolLimits
from tests.graphs import INPUT, OUTPUT, conv_classifier, rows
from tests.running import program
from tests.serving import (
    FOREVER,
    TIMEOUT_SECONDS,
    Watch,
    asked,
    begun,
    both_loops,
    ended,
    figures,
    gateway,
    hosting,
    pid,
    pids,
    serving,
    spinner,
    stopped,
    turns,
    until,
    variant_of,
)

pytestmark = pytest.mark.anyio
anyio_backend = both_loops


async def answered(pool: RunnerPool, variant: Variant, *, requests: int, seed: int) -> int:
    """Send requests of rows of their own one after the other; return how many answers were not theirs."""
    wrong = 0
    for number in range(requests):
        sent = np.random.default_rng([seed, number]).integers(0, 50, (1 + number % 3, 1))
        answer = await pool.infer(variant, {"x": sent})
        wrong += not np.array_equal(answer.outputs["y"], sent)
    return wrong


@pytest.mark.parametrize("instances", [1, 2])
async def test_every_request_is_answered_rightly_when_a_runner_is_killed(tmp_path: Path, instances: int) -> None:
    variant, watch = variant_of(spinner(), tmp_path), Watch()
    limits = PoolLimits(threads=1, knobs=Knobs(instances=instances, max_batch_size=8))
    async with hosting(tmp_path, watch=watch, limits=limits) as host, gateway(host) as pool:
        await pool.load(variant)
        clients = [asyncio.create_task(answered(pool, variant, requests=50, seed=seed)) for seed in range(8)]
        await until(lambda: asked(pool) > 1)
        os.kill(pids(host)[0], signal.SIGKILL)
        assert await asyncio.gather(*clients) == [0] * 8
        await until(lambda: watch.restarts == 1)


async def test_a_runner_that_dies_while_idle_is_started_again(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    async with hosting(tmp_path, watch=watch) as host, gateway(host) as pool:
        await pool.infer(variant, {INPUT: rows(1)})
        dying = pid(host)
        os.kill(dying, signal.SIGKILL)
        await until(lambda: watch.restarts == 1 and len(pids(host)) == 1)
        assert pid(host) != dying
        assert (await pool.infer(variant, {INPUT: rows(1)})).rows == 1
    assert watch.counts[:3] == [1, 0, 1]


async def test_a_gateway_finds_the_runner_that_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    async with hosting(tmp_path, watch=watch) as host, gateway(host) as pool:
        await pool.load(variant, knobs=Knobs(instances=2))
        await pool.infer(variant, {INPUT: rows(1)})
        await until(lambda: open_lines(pool) == 2)
        os.kill(pids(host)[0], signal.SIGKILL)
        await until(lambda: watch.restarts == 1)
        await until(lambda: open_lines(pool) == 2)


def open_lines(pool: RunnerPool) -> int:
    return sum(line.open for desk in pool._desks.values() for line in desk.lines)


async def test_a_runner_started_again_measures_nothing_anew(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    async with hosting(tmp_path, watch=watch) as host, gateway(host) as pool:
        await pool.load(variant)
        measured = (await figures(host)).tuning
        os.kill(pid(host), signal.SIGKILL)
        await until(lambda: watch.restarts == 1 and len(pids(host)) == 1)
        assert (await figures(host)).tuning == measured
        await pool.unload(variant)
        await pool.load(variant)
        assert (await figures(host)).tuning == measured
    assert measured.curve


async def test_a_request_that_two_runners_die_of_is_given_up_and_who_ran_with_it_is_answered(tmp_path: Path) -> None:
    variant, watch = variant_of(spinner(), tmp_path), Watch()
    joined = Knobs(mode="throughput", streams=1, max_batch_size=2, max_queue_delay_ms=1000)
    async with hosting(tmp_path, watch=watch) as host, gateway(host, watch=watch) as pool:
        await pool.load(variant, knobs=joined)
        killer = asyncio.create_task(pool.infer(variant, turns(FOREVER)))
        innocent = asyncio.create_task(pool.infer(variant, turns(3)))
        await until(lambda: begun(pool) == 2)
        os.kill(pid(host), signal.SIGKILL)
        await until(lambda: watch.retries == 2)
        await until(lambda: (asked(pool), begun(pool)) == (2, 1))
        os.kill(pid(host), signal.SIGKILL)
        with pytest.raises(RunnerCrashed, match="2 runners"):
            await killer
        np.testing.assert_array_equal((await innocent).outputs["y"], [[3]])
    assert watch.retries == 3  # both once, and the innocent that waited behind the second death


async def test_a_request_that_only_waited_is_no_suspect(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    async with hosting(tmp_path, watch=watch) as host, gateway(host, watch=watch) as pool:
        watch.on_loaded = lambda: os.kill(pid(host), signal.SIGSTOP)
        waiting = asyncio.create_task(pool.infer(variant, {INPUT: rows(1)}))
        for deaths in range(1, 4):
            await until(lambda: asked(pool) == 1)
            if deaths == 3:
                watch.on_loaded = lambda: None
            os.kill(pid(host), signal.SIGKILL)
            await until(lambda: watch.retries == deaths)  # noqa: B023
        assert (await waiting).rows == 1


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def test_a_corrupt_artifact_is_refused_and_not_tried_again_at_once(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    artifact = tmp_path / variant.artifact.file
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"\x01")
    async with serving(tmp_path, watch=watch) as pool:
        for _ in range(3):
            with pytest.raises(VariantNotReady, match="SHA-256"):
                await pool.infer(variant, {INPUT: rows(1)})
        assert not pool.ready(variant)
        assert set(pool.segment_bytes().values()) == {0}
    assert watch.fetches == 1


async def test_a_variant_that_failed_to_start_can_be_loaded_later(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    artifact = tmp_path / variant.artifact.file
    data = artifact.read_bytes()
    artifact.write_bytes(b"")
    async with serving(tmp_path) as pool:
        with pytest.raises(VariantNotReady):
            await pool.load(variant)
        artifact.write_bytes(data)
        await pool.unload(variant)
        await pool.load(variant)
        assert (await pool.infer(variant, {INPUT: rows(1)})).rows == 1


async def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with serving(tmp_path, limits=PoolLimits(start_timeout_seconds=0.01)) as pool:
        with pytest.raises(VariantNotReady, match="did not load within"):
            await pool.load(variant)


async def test_a_runner_that_hangs_is_killed_at_the_deadline(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    limits = PoolLimits(threads=1, request_timeout_seconds=2)
    async with hosting(tmp_path, watch=watch, limits=limits) as host, gateway(host, limits=limits) as pool:
        await pool.load(variant)
        hanging = pid(host)
        os.kill(hanging, signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded):
            await pool.infer(variant, {INPUT: rows(1)})
        await until(lambda: watch.restarts == 1 and len(pids(host)) == 1)
        assert (await pool.infer(variant, {INPUT: rows(1)})).rows == 1
        assert ended(hanging)


async def test_a_cancelled_request_keeps_its_memory_until_it_is_answered(tmp_path: Path) -> None:
    variant, xs = variant_of(conv_classifier(), tmp_path), [rows(1, seed=seed) for seed in range(20)]
    async with hosting(tmp_path) as host, gateway(host) as pool:
        expected = [(await pool.infer(variant, {INPUT: x})).outputs[OUTPUT] for x in xs]
        with stopped(pid(host)):
            first = [asyncio.create_task(pool.infer(variant, {INPUT: x})) for x in xs]
            await until(lambda: asked(pool) == 20)
            for task in first[::2]:
                task.cancel()
            later = [asyncio.create_task(pool.infer(variant, {INPUT: x})) for x in xs]
            await until(lambda: asked(pool) == 40)
        kept = await asyncio.gather(*first[1::2], *later)
    for answer, right in zip(kept, expected[1::2] + expected, strict=True):
        # joined or alone, with one stream or two, the engine adds 144 products in another order
        np.testing.assert_allclose(answer.outputs[OUTPUT], right, rtol=0, atol=144 * 2**-24 * np.abs(right).max())


async def test_more_requests_than_may_wait_are_turned_away(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host, limits=PoolLimits(max_queued=2)) as pool:
        await pool.load(variant)
        with stopped(pid(host)):
            waiting = [asyncio.create_task(pool.infer(variant, {INPUT: rows(1)})) for _ in range(2)]
            await until(lambda: pool.in_flight() == 2)
            with pytest.raises(QueueFull) as refused:
                await pool.infer(variant, {INPUT: rows(1)})
        await asyncio.gather(*waiting)
    assert refused.value.retry_after_seconds is not None


async def test_a_request_that_would_wait_beyond_its_deadline_is_turned_away_at_once(tmp_path: Path) -> None:
    variant = variant_of(spinner(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=Knobs(mode="latency", max_batch_size=1))
        waiting = [asyncio.create_task(pool.infer(variant, turns(FOREVER)))]
        await until(lambda: begun(pool) == 1)
        waiting += [asyncio.create_task(pool.infer(variant, turns(*range(200)))) for _ in range(40)]
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (await figures(host)).queued_rows < 8000:
                pass
        with pytest.raises(QueueFull, match="would begin with the request in about") as refused:
            await pool.infer(variant, turns(1), timeout_seconds=1e-4)  # 8000 rows in 0.1 ms: nothing is so fast
        await dismissed(waiting)
    assert refused.value.retry_after_seconds is not None


async def test_a_request_whose_deadline_passes_while_it_waits_is_not_computed(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant)
        await pool.infer(variant, {INPUT: rows(1)})
        with stopped(pid(host)):
            with pytest.raises(DeadlineExceeded, match="did not answer in the time"):
                await pool.infer(variant, {INPUT: rows(2)}, timeout_seconds=0.2)
            given_up = time.monotonic()  # uvloop counts milliseconds, and gives up a part of one too early
            await until(lambda: time.monotonic() > given_up + 0.01)
        await until(lambda: asked(pool) == 0)
        found = await figures(host)
    assert (found.refused["deadline"], found.rows) == (1, 1)


async def test_a_request_that_nobody_waits_for_is_not_computed(tmp_path: Path) -> None:
    variant = variant_of(spinner(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=Knobs(mode="latency"))
        running = asyncio.create_task(pool.infer(variant, turns(FOREVER)))
        await until(lambda: begun(pool) == 1)
        queued = asyncio.create_task(pool.infer(variant, turns(1)))
        await until(lambda: asked(pool) == 2)
        await dismissed([queued])
        await until(lambda: asked(pool) == 1)
        found = await figures(host)
        await dismissed([running])
    assert (found.refused["cancelled"], found.queued_rows, found.rows) == (1, 0, 0)


async def dismissed(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_request_of_a_higher_priority_overtakes_others(tmp_path: Path) -> None:
    variant, order = variant_of(spinner(), tmp_path), list[int]()
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=Knobs(mode="latency"))

        async def ask(priority: int) -> None:
            await pool.infer(variant, turns(10_000), priority=priority)
            order.append(priority)

        with stopped(pid(host)):
            waiting = [asyncio.create_task(ask(priority)) for priority in (9, 0, 1, -1, 2)]
            await until(lambda: asked(pool) == 5)
        await asyncio.gather(*waiting)
    assert order[order.index(0) :] == [0, -1]


async def test_a_new_variant_waits_until_a_runner_is_idle(tmp_path: Path) -> None:
    first, second = (variant_of(conv_classifier(seed=n), tmp_path, name=f"v{n}") for n in range(2))
    async with hosting(tmp_path, limits=PoolLimits(max_loaded=1)) as host, gateway(host) as pool:
        await pool.load(first)
        with stopped(pid(host)):
            busy = asyncio.create_task(pool.infer(first, {INPUT: rows(1)}))
            await until(lambda: asked(pool) == 1)
            waiting = asyncio.create_task(pool.infer(second, {INPUT: rows(1)}))
            await until(lambda: pool.in_flight() == 2)
        await asyncio.gather(busy, waiting)
        assert [held.variant for held in host.held()] == ["v1"]


async def test_a_closed_pool_takes_no_request(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with serving(tmp_path) as pool:
        await pool.aclose()
        with pytest.raises(VariantNotReady, match="stopping"):
            await pool.infer(variant, {INPUT: rows(1)})


async def test_a_runner_sees_none_of_the_gateways_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTET_S3_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant_of(conv_classifier(), tmp_path))
        environment = environment_of(pid(host))
    assert b"secret" not in environment
    assert b"OCTET" not in environment


async def test_a_runner_outlives_what_a_terminal_sends_to_all(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant)
        number = pid(host)
        assert os.getsid(number) != os.getsid(0)
        os.kill(number, signal.SIGINT)
        os.kill(number, signal.SIGTERM)
        await pool.infer(variant, {INPUT: rows(1)})
        assert pid(host) == number


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_runners_go_with_a_gateway_that_is_killed(tmp_path: Path, loop: str) -> None:
    script = f"""
        import asyncio, {loop}
        from pathlib import Path
        from tests.graphs import conv_classifier
        from tests.serving import pid_of, serving, variant_of

        async def main():
            folder = Path({str(tmp_path)!r})
            async with serving(folder) as pool:
                await pool.load(variant_of(conv_classifier(), folder))
                print(await pid_of(pool), flush=True)
                await asyncio.Event().wait()

        {loop}.run(main())
    """
    root = Path(app.__file__).parent.parent
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with program(command, stdout=subprocess.PIPE, cwd=root, text=True) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        gateway.kill()
    assert ended(pid)


def test_a_runner_imports_neither_telemetry_nor_what_makes_artifacts() -> None:
    imports = "import sys, workers.runners.service, workers.openvino_engine"
    script = f"{imports}; print(*[name for name, found in sys.modules.items() if found])"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert {"torch", "nncf", "onnx", "onnxruntime", "openvino_telemetry"}.isdisjoint(printed.split())
    assert "openvino" in printed.split()


SENDER = """
import workers.openvino_engine
import workers.runners.service
from openvino.tools.ovc import telemetry_stub, telemetry_utils
assert telemetry_utils.tm is telemetry_stub, telemetry_utils.tm
"""


def test_a_runner_has_nothing_to_send_reports_with() -> None:
    ran = subprocess.run([sys.executable, "-c", SENDER], capture_output=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()
