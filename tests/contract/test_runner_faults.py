"""What happens when a runner dies, hangs or cannot start: callers get answers or clear errors, and nothing is left."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import app
from app.domain.errors import DeadlineExceeded, QueueFull, RunnerCrashed, VariantNotReady
from app.serving.pool import RunnerPool
from app.serving.terms import Inference, PoolLimits
from tests.graphs import INPUT, OUTPUT, conv_classifier, rows
from tests.serving import Watch, ended, pid_of, serving, until, variant_of

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


def in_flight(pool: RunnerPool, count: int) -> bool:
    return sum(kept.in_flight for kept in pool.loaded()) == count


async def test_no_request_of_eight_clients_fails_when_the_runner_is_killed(tmp_path: Path) -> None:
    variant, watch, x = variant_of(conv_classifier(), tmp_path), Watch(), rows(3)
    async with serving(tmp_path, watch=watch) as pool:
        expected = (await pool.infer(variant, {INPUT: x})).outputs[OUTPUT]

        async def client() -> list[Inference]:
            return [await pool.infer(variant, {INPUT: x}) for _ in range(50)]

        clients = [asyncio.create_task(client()) for _ in range(8)]
        await until(lambda: in_flight(pool, 8))
        os.kill(pid_of(pool), signal.SIGKILL)
        answers = [answer for asked in await asyncio.gather(*clients) for answer in asked]
    assert watch.restarts == 1
    assert len(answers) == 400
    assert all(np.array_equal(answer.outputs[OUTPUT], expected) for answer in answers)


async def test_a_runner_that_dies_while_idle_is_started_again(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    async with serving(tmp_path, watch=watch) as pool:
        await pool.load(variant)
        os.kill(pid_of(pool), signal.SIGKILL)
        await until(lambda: watch.restarts == 1)
        await until(lambda: pool.ready(variant))
    assert watch.counts == [1, 0, 1, 0]


async def test_a_request_that_two_runners_die_of_is_given_up(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    async with serving(tmp_path, watch=watch) as pool:
        watch.on_loaded = lambda: os.kill(pid_of(pool), signal.SIGSTOP)
        asked = asyncio.create_task(pool.infer(variant, {INPUT: rows(1)}))
        innocent = asyncio.create_task(pool.infer(variant, {INPUT: rows(2)}))
        await kill_once_asked(pool, requests=2)
        await until(lambda: watch.restarts == 1)
        await kill_once_asked(pool, requests=2)
        watch.on_loaded = lambda: None
        with pytest.raises(RunnerCrashed, match="2 runners"):
            await asked
        assert (await innocent).rows == 2


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def sent(pool: RunnerPool) -> int:
    """Count the requests that a runner was sent and has not answered; `in_flight` counts those that wait for it too."""
    runners = [keeper.runner for keeper in pool._keepers.values()]
    return sum(len(runner._sent) for runner in runners if runner is not None)


async def kill_once_asked(pool: RunnerPool, *, requests: int) -> None:
    await until(lambda: sent(pool) == requests)
    os.kill(pid_of(pool), signal.SIGKILL)


async def test_a_corrupt_artifact_is_refused_and_not_tried_again_at_once(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    artifact = tmp_path / variant.artifact.file
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"\x01")
    async with serving(tmp_path, watch=watch) as pool:
        for _ in range(3):
            with pytest.raises(VariantNotReady, match="SHA-256"):
                await pool.infer(variant, {INPUT: rows(1)})
        assert not pool.ready(variant)
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
        assert pool.ready(variant)


async def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with serving(tmp_path, limits=PoolLimits(start_timeout_seconds=0.01)) as pool:
        with pytest.raises(VariantNotReady, match="did not load within"):
            await pool.load(variant)


async def test_a_runner_that_hangs_is_killed_at_the_deadline(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    async with serving(tmp_path, watch=watch, limits=PoolLimits(request_timeout_seconds=2)) as pool:
        await pool.load(variant)
        hanging = pid_of(pool)
        os.kill(hanging, signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded):
            await pool.infer(variant, {INPUT: rows(1)})
        await until(lambda: watch.restarts == 1 and pool.ready(variant))
        assert (await pool.infer(variant, {INPUT: rows(1)})).rows == 1
        assert ended(hanging)
    assert watch.restarts == 1


async def test_a_cancelled_request_keeps_its_memory_until_it_is_answered(tmp_path: Path) -> None:
    variant, xs = variant_of(conv_classifier(), tmp_path), [rows(1, seed=seed) for seed in range(20)]
    async with serving(tmp_path) as pool:
        expected = [(await pool.infer(variant, {INPUT: x})).outputs[OUTPUT] for x in xs]
        os.kill(pid_of(pool), signal.SIGSTOP)
        asked = [asyncio.create_task(pool.infer(variant, {INPUT: x})) for x in xs]
        await until(lambda: in_flight(pool, 20))
        for task in asked[::2]:
            task.cancel()
        await until(lambda: in_flight(pool, 10))
        later = [asyncio.create_task(pool.infer(variant, {INPUT: x})) for x in xs]
        await until(lambda: in_flight(pool, 30))
        os.kill(pid_of(pool), signal.SIGCONT)
        kept = await asyncio.gather(*asked[1::2], *later)
    for answer, right in zip(kept, expected[1::2] + expected, strict=True):
        np.testing.assert_array_equal(answer.outputs[OUTPUT], right)


async def test_more_requests_than_may_wait_are_turned_away(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with serving(tmp_path, limits=PoolLimits(max_queued=2)) as pool:
        await pool.load(variant)
        os.kill(pid_of(pool), signal.SIGSTOP)
        asked = [asyncio.create_task(pool.infer(variant, {INPUT: rows(1)})) for _ in range(2)]
        await until(lambda: in_flight(pool, 2))
        with pytest.raises(QueueFull):
            await pool.infer(variant, {INPUT: rows(1)})
        os.kill(pid_of(pool), signal.SIGCONT)
        await asyncio.gather(*asked)


async def test_a_new_variant_waits_until_a_runner_is_idle(tmp_path: Path) -> None:
    first, second = (variant_of(conv_classifier(seed=n), tmp_path, name=f"v{n}") for n in range(2))
    async with serving(tmp_path, limits=PoolLimits(max_loaded=1)) as pool:
        await pool.load(first)
        os.kill(pid_of(pool), signal.SIGSTOP)
        busy = asyncio.create_task(pool.infer(first, {INPUT: rows(1)}))
        await until(lambda: in_flight(pool, 1))
        waiting = asyncio.create_task(pool.infer(second, {INPUT: rows(1)}))
        os.kill(pid_of(pool), signal.SIGCONT)
        await asyncio.gather(busy, waiting)
        assert [kept.variant.name for kept in pool.loaded()] == ["v1"]


async def test_a_closed_pool_takes_no_request(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with serving(tmp_path) as pool:
        await pool.aclose()
        with pytest.raises(VariantNotReady, match="stopping"):
            await pool.infer(variant, {INPUT: rows(1)})


async def test_a_runner_sees_none_of_the_gateways_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTET_S3_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    async with serving(tmp_path) as pool:
        await pool.load(variant_of(conv_classifier(), tmp_path))
        environment = environment_of(pid_of(pool))
    assert b"secret" not in environment
    assert b"OCTET" not in environment


async def test_a_runner_outlives_what_a_terminal_sends_to_all(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with serving(tmp_path) as pool:
        await pool.load(variant)
        pid = pid_of(pool)
        assert os.getsid(pid) != os.getsid(0)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        await pool.infer(variant, {INPUT: rows(1)})
        assert pid_of(pool) == pid


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
                print(pid_of(pool), flush=True)
                await asyncio.Event().wait()

        {loop}.run(main())
    """
    root = Path(app.__file__).parent.parent
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        gateway.kill()
    assert ended(pid)


def test_a_runner_imports_neither_telemetry_nor_what_makes_artifacts() -> None:
    script = "import sys, workers.runners.service; print(*[name for name, found in sys.modules.items() if found])"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert {"torch", "nncf", "onnx", "onnxruntime", "openvino_telemetry"}.isdisjoint(printed.split())
    assert "openvino" in printed.split()


SENDER = """
import workers.runners.service
from openvino.tools.ovc import telemetry_stub, telemetry_utils
assert telemetry_utils.tm is telemetry_stub, telemetry_utils.tm
"""


def test_a_runner_has_nothing_to_send_reports_with() -> None:
    ran = subprocess.run([sys.executable, "-c", SENDER], capture_output=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()
