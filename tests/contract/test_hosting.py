"""Several gateways use one host's runners: all are answered, none shares another's fate, nothing outlives the host."""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

import app
from app.domain.errors import QueueFull, VariantNotReady
from app.domain.serving import Knobs, Servable
from app.hosting import open_more_files
from tests.contract.test_runners import one_node
from tests.running import program
from tests.serving import (
    FOREVER,
    TIMEOUT_SECONDS,
    asked,
    begun,
    both_loops,
    distant,
    ended,
    figures_at_rest,
    files_left,
    gateway,
    host_process,
    hosting,
    open_descriptors,
    pid,
    pid_of,
    pids,
    socket_path,
    spinner,
    stopped,
    turns,
    until,
    variant_of,
)

pytestmark = pytest.mark.anyio
anyio_backend = both_loops


@pytest.fixture
def path() -> Iterator[Path]:
    with socket_path() as made:
        yield made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where a host process that works in `tmp_path` finds artifacts."""
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


async def test_two_gateways_share_a_runner_and_each_gets_its_own_answers(tmp_path: Path) -> None:
    variant = variant_of(spinner(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as one, gateway(host) as other:
        await one.load(variant, knobs=Knobs(max_batch_size=4))
        asking = [
            pool.infer(variant, turns(2 * n + place)) for n in range(40) for place, pool in enumerate((one, other))
        ]
        found = [int(answer.outputs["y"][0, 0]) for answer in await asyncio.gather(*asking)]
        assert await pid_of(one) == await pid_of(other) == pid(host)
    assert found == list(range(80))


async def test_a_gateway_that_hangs_up_takes_its_requests_along_and_no_others(tmp_path: Path) -> None:
    variant = variant_of(spinner(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as staying, gateway(host) as leaving:
        await staying.load(variant, knobs=Knobs(mode="latency"))
        await leaving.infer(variant, turns(1))
        running = asyncio.create_task(staying.infer(variant, turns(300_000)))
        await until(lambda: begun(staying) == 1)
        leaving_requests = [asyncio.create_task(leaving.infer(variant, turns(FOREVER))) for _ in range(5)]
        await until(lambda: asked(leaving) == 5)
        for request in leaving_requests:
            request.cancel()
        await leaving.aclose()
        assert (await running).outputs["y"] == 300_000
        assert (await staying.infer(variant, turns(2))).outputs["y"] == 2
        assert (await figures_at_rest(host)).queued_rows == 0


async def test_a_gateway_that_is_killed_takes_its_requests_along_and_no_others(tmp_path: Path, path: Path) -> None:
    variant = variant_of(spinner(), tmp_path)
    script = f"""
        import asyncio
        from pathlib import Path
        from tests.serving import asked, distant, spinner, turns, until, variant_of

        async def main():
            variant = variant_of(spinner(), Path({str(tmp_path)!r}))
            async with distant(Path({str(path)!r})) as pool:
                asking = [asyncio.create_task(pool.infer(variant, turns(10_000))) for _ in range(200)]
                await until(lambda: asked(pool) > 100)
                print("asked", flush=True)
                await asyncio.Event().wait()

        asyncio.run(main())
    """
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant)
        listening = asyncio.create_task(host.listen(path))
        with python(script) as other:
            assert await asyncio.to_thread(line_of, other) == "asked"
            mine = [asyncio.create_task(pool.infer(variant, turns(number))) for number in range(20)]
            other.kill()
        assert [answer.outputs["y"].item() for answer in await asyncio.gather(*mine)] == list(range(20))
        assert (await figures_at_rest(host)).queued_rows == 0
        listening.cancel()
        await asyncio.wait([listening])


async def test_two_variants_share_no_memory(tmp_path: Path) -> None:
    variants = [variant_of(one_node(name), tmp_path, name=name.lower()) for name in ("Neg", "Abs")]
    x = np.ones((3, 4), np.float32)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await asyncio.gather(*(pool.infer(variant, {"x0": x}) for variant in variants for _ in range(10)))
        one, other = (segments_of(number) for number in pids(host))
    assert one
    assert other
    assert not one & other


def segments_of(number: int) -> set[str]:
    """Return the inodes of the shared memory that a process maps."""
    lines = Path(f"/proc/{number}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "memfd:octet-tensors" in line}


async def test_gateways_use_a_host_in_a_process_of_its_own(tmp_path: Path, cache: Path, path: Path) -> None:
    variant = variant_of(spinner(), cache)
    with host_process(tmp_path, path) as process:
        async with distant(path) as one, distant(path) as other:
            assert (await one.infer(variant, turns(1))).outputs["y"] == 1
            assert (await other.infer(variant, turns(2))).outputs["y"] == 2
            runner = await pid_of(one)
            assert await pid_of(other) == runner
        process.terminate()
        assert await asyncio.to_thread(process.wait, TIMEOUT_SECONDS) == 0
    assert ended(runner)


async def test_a_host_that_is_told_to_stop_loses_no_request(tmp_path: Path, cache: Path, path: Path) -> None:
    variant = variant_of(spinner(), cache)
    with host_process(tmp_path, path) as process:
        async with distant(path) as pool:
            await pool.infer(variant, turns(1))
            waiting = [asyncio.create_task(pool.infer(variant, turns(300_000))) for _ in range(4)]
            await until(lambda: asked(pool) == 4)
            process.terminate()
            assert [answer.outputs["y"].item() for answer in await asyncio.gather(*waiting)] == [300_000] * 4
            assert await asyncio.to_thread(process.wait, TIMEOUT_SECONDS) == 0


async def test_a_host_that_is_killed_takes_its_runners_along(tmp_path: Path, cache: Path, path: Path) -> None:
    variant = variant_of(spinner(), cache)
    with host_process(tmp_path, path) as process:
        async with distant(path) as pool:
            await pool.infer(variant, turns(1))
            runner = await pid_of(pool)
            process.kill()
            assert await asyncio.to_thread(ended, runner)


async def test_requests_are_answered_by_the_next_host(tmp_path: Path, cache: Path, path: Path) -> None:
    variant = variant_of(spinner(), cache)
    async with distant(path) as pool:
        with host_process(tmp_path, path) as first:
            await pool.infer(variant, turns(1))
            os.kill(await pid_of(pool), signal.SIGSTOP)
            waiting = [asyncio.create_task(pool.infer(variant, turns(number))) for number in range(5)]
            await until(lambda: asked(pool) == 5)
            first.kill()
            await until(lambda: asked(pool) == 0)
        with host_process(tmp_path, path):
            found = [answer.outputs["y"].item() for answer in await asyncio.gather(*waiting)]
    assert found == list(range(5))


async def test_a_host_that_stands_still_is_not_waited_for_for_ever(tmp_path: Path, path: Path) -> None:
    with host_process(tmp_path, path) as process:
        async with distant(path) as pool:
            assert await pool.held() == ()
            with stopped(process.pid), pytest.raises(VariantNotReady, match="did not reply"):
                await pool.statistics()
            assert await pool.held() == ()


async def test_a_host_without_descriptors_takes_gateways_again_when_it_has_some(
    tmp_path: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with hosting(tmp_path) as host:
        listening = asyncio.create_task(host.listen(path))
        await until(path.exists)
        with files_left(1), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as refused:
            refused.connect(os.fspath(path))
            await until(lambda: "no gateway can connect" in caplog.text)
        async with distant(path) as pool:
            assert await pool.held() == ()
        listening.cancel()
        await asyncio.wait([listening])


@pytest.mark.parametrize("files", range(5))
async def test_a_request_for_which_no_descriptor_is_left_fails_alone_and_loses_none(
    tmp_path: Path, files: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # a log that is kept keeps an error, and with it the request's memory
    variant = variant_of(one_node("Neg", size="k"), tmp_path)
    x = np.ones((1, 9), np.float32)
    async with hosting(tmp_path) as host:
        await host.prepare(Servable.of(variant, None), knobs=None)
        before = open_descriptors()
        async with gateway(host) as pool:
            await pool.held()
            with files_left(files), pytest.raises((VariantNotReady, QueueFull)):
                await pool.infer(variant, {"x0": x})
            assert (await pool.infer(variant, {"x0": x})).outputs["y"].shape == (1, 9)
        del pool  # so does what knows the error
        gc.collect()
        await until(lambda: open_descriptors() == before)


def test_a_host_opens_as_many_files_as_it_is_allowed_to() -> None:
    with files_left(100):
        open_more_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == hard


def python(script: str) -> AbstractContextManager["subprocess.Popen[str]"]:
    root = Path(app.__file__).parent.parent
    return program([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=root, text=True)


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
