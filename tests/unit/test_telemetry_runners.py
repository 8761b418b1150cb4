"""What is shown of runners, from what they say of themselves; their processes are real ones that do nothing."""

import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from app.domain.runners import HeldVariant
from app.domain.serving import BatchStatistics, CurvePoint, Knobs, RunnerStatus, Timing, Tuning
from app.telemetry.instruments import Instruments
from app.telemetry.processes import find
from app.telemetry.runners import RunnerReadings
from tests.running import program
from tests.unit.test_telemetry_meters import LABELS, shown

pytestmark = pytest.mark.anyio

POINT = CurvePoint(streams=1, threads=2, busy=1, batch=1, p50_seconds=0.002, rows_per_second=500.0)
MANY = replace(POINT, streams=2, batch=8, rows_per_second=900.0)
TUNING = Tuning(curve=(), latency=POINT, throughput=MANY)


def status_of(pid: int, *, rows: int = 0, late: int = 0) -> RunnerStatus:
    once = Timing(count=rows, nanoseconds=rows * 10**9)
    return RunnerStatus(
        model="net",
        version=1,
        variant="int8",
        instance=0,
        pid=pid,
        engine="openvino",
        load_seconds=0.5,
        pss_bytes=1000,
        peak_bytes=2000,
        in_flight=3,
        queued_rows=7,
        last_inference_ns=0,
        rows=rows,
        queue=once,
        input=once,
        compute=once,
        output=once,
        batches=(BatchStatistics(rows=1, runs=once),),
        refused={"deadline": late, "made-up": 5},
        mode="throughput",
        tuning=TUNING,
        knobs=Knobs(),
    )


class Host:
    """Says what a test wants it to say."""

    def __init__(self) -> None:
        self.told: tuple[RunnerStatus, ...] = ()
        self.pids: tuple[int, ...] = ()
        self.instruments = Instruments(version="1")
        self.readings = RunnerReadings(self.instruments, ask=self.ask, held=self.held)

    async def ask(self) -> tuple[RunnerStatus, ...]:
        return self.told

    def held(self) -> tuple[HeldVariant, ...]:
        kept = HeldVariant(model="net", version=1, variant="int8", pids=self.pids)
        return (kept,) if self.pids else ()

    async def read(self, *told: RunnerStatus) -> None:
        self.told, self.pids = told, tuple(status.pid for status in told)
        await self.readings.read()

    def shows(self, name: str, **labels: str) -> float:
        more = [f'{label}="{value}"' for label, value in labels.items()]
        return shown(self.instruments, name)[",".join(sorted([*LABELS.split(","), *more]))]


def idle_process() -> AbstractContextManager["subprocess.Popen[Any]"]:
    return program([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


async def test_what_runners_count_goes_on_when_one_takes_anothers_place() -> None:
    host = Host()
    with idle_process() as first, idle_process() as second:
        await host.read(status_of(first.pid, rows=10, late=1))
        await host.read(status_of(first.pid, rows=15, late=1))
        await host.read(status_of(second.pid, rows=4, late=2))
    assert host.shows("octet_runner_rows_total") == 19
    assert host.shows("octet_runner_refused_total", reason="deadline") == 3
    assert host.shows("octet_runner_stage_seconds_total", stage="compute") == 19
    assert host.shows("octet_batch_size_count") == 19


async def test_two_instances_are_summed() -> None:
    host = Host()
    with idle_process() as first, idle_process() as second:
        await host.read(status_of(first.pid), status_of(second.pid))
    assert host.shows("octet_runners_ready") == 2
    assert host.shows("octet_runner_queued_rows") == 14
    assert host.shows("octet_runner_requests") == 6
    assert host.shows("octet_runner_memory_bytes", kind="pss") == 2000
    assert host.shows("octet_runner_mode", mode="throughput") == 2
    assert host.shows("octet_tuning_rows_per_second", setting="throughput") == 900


async def test_of_an_unloaded_variant_every_gauge_is_zero_once_its_process_has_ended() -> None:
    host = Host()
    with idle_process() as process:
        await host.read(status_of(process.pid))
        process.kill()
        process.wait()
        await host.read()
    gauges = ("octet_runners_ready", "octet_runner_memory_bytes", "octet_runner_queued_rows", "octet_tuning_streams")
    assert {value for name in gauges for value in shown(host.instruments, name).values()} == {0}


async def test_a_process_that_outlives_its_variant_shows_as_residue_until_it_ends() -> None:
    host = Host()
    with idle_process() as process:
        await host.read(status_of(process.pid))
        await host.read()
        assert host.shows("octet_runner_memory_bytes", kind="residue") > 0
        assert host.shows("octet_runner_memory_bytes", kind="pss") == 0
        process.kill()
        process.wait()
    await host.read()
    assert host.shows("octet_runner_memory_bytes", kind="residue") == 0


async def test_a_start_with_what_an_earlier_runner_measured_is_a_warm_one() -> None:
    host = Host()
    with idle_process() as first, idle_process() as second:
        await host.read(status_of(first.pid))
        await host.read(status_of(second.pid))
    assert host.shows("octet_runner_load_duration_seconds_count", start="cold") == 1
    assert host.shows("octet_runner_load_duration_seconds_count", start="warm") == 1


async def test_a_runner_names_neither_its_variant_nor_a_reason_of_its_own() -> None:
    host = Host()
    with idle_process() as process:
        await host.read(replace(status_of(process.pid), model="made-up"))
    assert "made-up" not in host.instruments.exposition().decode()


async def test_a_reading_comes_at_once_when_a_runner_comes() -> None:
    host = Host()
    with idle_process() as process:
        host.told, host.pids = (status_of(process.pid),), (process.pid,)
        host.readings.notice()
        await host.readings.read()
    assert host.shows("octet_runners_ready") == 1


def test_a_number_that_is_used_again_names_another_process() -> None:
    with idle_process() as process:
        known = find(process.pid)
        assert known is not None
        assert known.memory_bytes() > 0
        assert replace(known, started_ticks=known.started_ticks - 1).memory_bytes() == 0
        assert known.seconds() >= 0
    assert find(process.pid) is None
