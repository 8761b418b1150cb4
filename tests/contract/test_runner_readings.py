"""What a host's metrics say of real runners: started, killed, unloaded."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from app.domain.variants import Variant
from app.hosting import HostInstruments
from app.serving.host import RunnerHost
from app.serving.pool import RunnerPool
from app.serving.terms import PoolLimits
from app.telemetry.instruments import Instruments
from app.telemetry.runners import RunnerReadings
from tests.graphs import INPUT, conv_classifier, rows
from tests.serving import gateway, pid, pids, until, variant_of
from tests.unit.test_telemetry_meters import shown

pytestmark = pytest.mark.anyio

LABELS = 'model="model",variant="float32",version="1"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A host that is read, a gateway's pool, and a variant that they serve."""

    host: RunnerHost
    pool: RunnerPool
    readings: RunnerReadings
    instruments: Instruments
    variant: Variant

    async def predict(self, count: int) -> None:
        for _ in range(count):
            await self.pool.infer(self.variant, {INPUT: rows(2)})
        await self.readings.read()

    def shows(self, name: str, **labels: str) -> float:
        more = [f'{label}="{value}"' for label, value in labels.items()]
        return shown(self.instruments, name).get(",".join(sorted([*LABELS.split(","), *more])), 0)


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    async def fetch(variant: object) -> Path:
        del variant
        return folder / made.artifact.file

    made = variant_of(conv_classifier(), folder)
    instruments = Instruments(version="1")
    observer = HostInstruments(instruments)
    host = RunnerHost(fetch=fetch, observer=observer, limits=PoolLimits(threads=1))
    readings = RunnerReadings(instruments, ask=host.statuses, held=host.held)
    observer.on_change = readings.notice
    async with gateway(host) as pool:
        yield Watched(host=host, pool=pool, readings=readings, instruments=instruments, variant=made)
    await host.aclose()


async def test_a_killed_runner_is_a_restart_and_a_warm_start_and_its_count_goes_on(tmp_path: Path) -> None:
    async with watched(tmp_path) as seen:
        await seen.predict(3)
        first = pid(seen.host)
        os.kill(first, signal.SIGKILL)
        await until(lambda: bool(pids(seen.host)) and pid(seen.host) != first)
        await seen.predict(2)
    assert seen.shows("octet_runner_restarts_total") == 1
    assert seen.shows("octet_runner_load_duration_seconds_count", start="cold") == 1
    assert seen.shows("octet_runner_load_duration_seconds_count", start="warm") == 1
    assert seen.shows("octet_runner_rows_total") == 10
    assert seen.shows("octet_batch_size_sum") == 10


async def test_a_ready_runner_shows_its_memory_and_its_choice_and_an_unloaded_one_nothing(tmp_path: Path) -> None:
    async with watched(tmp_path) as seen:
        await seen.predict(1)
        memory = partial(seen.shows, "octet_runner_memory_bytes")
        assert memory(kind="peak") >= memory(kind="pss") > 0
        assert memory(kind="residue") == 0
        assert seen.shows("octet_tuning_threads", setting="latency") == 1
        assert seen.shows("octet_tuning_rows_per_second", setting="throughput") > 0
        await seen.pool.unload(seen.variant)
        await seen.readings.read()
    assert {memory(kind=kind) for kind in ("pss", "peak", "residue")} == {0}
    assert {
        value
        for name in ("octet_tuning_streams", "octet_runners_ready")
        for value in shown(seen.instruments, name).values()
    } == {0}
