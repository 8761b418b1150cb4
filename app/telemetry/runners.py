"""What runners say of themselves, as gauges and counters: read now and then where they are started, nowhere else.

So no request pays for it, and a counter goes on when a runner dies and another takes its place. What a runner counted
between its last reading and its end is lost.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.domain.runners import HeldVariant
from app.domain.serving import CurvePoint, RunnerStatus, Tuning
from app.telemetry.instruments import Instruments
from app.telemetry.meters import Labels
from app.telemetry.processes import Process, find

MODES = ("latency", "throughput")
REFUSALS = ("deadline", "cancelled", "failed")
STAGES = ("queue", "input", "compute", "output")
_NOTHING = CurvePoint(streams=0, threads=0, busy=0, batch=0, p50_seconds=0.0, rows_per_second=0.0)


@dataclass(slots=True, kw_only=True)
class _Runner:
    """A runner that the host keeps; its process may already be gone.

    Attributes:
        seconds_to_ready: from its process' start until it was first seen ready.
        status: the last it told, up to which it has been counted.
    """

    labels: Labels
    process: Process | None
    seconds_to_ready: float | None
    status: RunnerStatus | None = None


class RunnerReadings:
    """Shows every variant's runners, summed; of a variant that is unloaded all gauges are 0.

    Args:
        ask: has every ready runner say how it fares.
        held: says which variants are kept, with the process ids of their ready runners.
    """

    def __init__(
        self,
        instruments: Instruments,
        *,
        ask: Callable[[], Awaitable[tuple[RunnerStatus, ...]]],
        held: Callable[[], tuple[HeldVariant, ...]],
    ) -> None:
        self._instruments = instruments
        self._ask = ask
        self._held = held
        self._changed = asyncio.Event()
        self._kept: set[Labels] = set()
        self._shown: set[Labels] = set()
        self._runners: dict[int, _Runner] = {}
        self._leaving: dict[Process, Labels] = {}
        self._tunings: dict[Labels, Tuning] = {}

    async def repeat(self, *, every: float) -> None:
        """Read again and again, and at once when something changed, until cancelled."""
        while True:
            self._changed.clear()
            await self.read()
            try:
                async with asyncio.timeout(every):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def notice(self) -> None:
        """Look which runners there are, for one has just become ready or is so no more."""
        self._look()
        self._changed.set()

    async def read(self) -> None:
        """Ask every runner, count what is new, and show the sums."""
        self._look()
        for status in await self._ask():
            runner = self._runners.get(status.pid)
            if runner is not None:
                self._count(runner, status)
        self._look()  # one may have ended meanwhile
        self._show()

    def _look(self) -> None:
        """Note who came and who went."""
        held = self._held()
        self._kept = {(one.model, str(one.version), one.variant) for one in held}
        now = {pid: (one.model, str(one.version), one.variant) for one in held for pid in one.pids}
        for pid in self._runners.keys() - now.keys():
            gone = self._runners.pop(pid)
            if gone.process is not None:
                self._leaving[gone.process] = gone.labels
        for pid, labels in now.items():
            if pid not in self._runners:
                process = find(pid)
                seconds = process.seconds() if process is not None else None
                self._runners[pid] = _Runner(labels=labels, process=process, seconds_to_ready=seconds)

    def _count(self, runner: _Runner, status: RunnerStatus) -> None:
        """Add to the counters what the runner did since it was last counted."""
        before, runner.status = runner.status, status
        if before is None:
            self._count_load(runner, status)
        instruments, labels = self._instruments, runner.labels
        instruments.runner_rows.labels(*labels).inc(_more(status.rows, before.rows if before else 0))
        for reason in REFUSALS:
            more = _more(status.refused.get(reason, 0), before.refused.get(reason, 0) if before else 0)
            instruments.runner_refused.labels(*labels, reason).inc(more)
        for stage in STAGES:
            more = _more(_nanoseconds(status, stage), _nanoseconds(before, stage) if before else 0)
            instruments.runner_stage_seconds.labels(*labels, stage).inc(more / 1e9)
        counted = {one.rows: one.runs.count for one in before.batches} if before else {}
        for batch in status.batches:
            more = _more(batch.runs.count, counted.get(batch.rows, 0))
            instruments.batch_size.labels(*labels).observe_many(batch.rows, count=more)

    def _count_load(self, runner: _Runner, status: RunnerStatus) -> None:
        """Observe how long a start took: a warm one was told what an earlier runner had measured."""
        start = "warm" if self._tunings.get(runner.labels) == status.tuning else "cold"
        self._tunings[runner.labels] = status.tuning
        if runner.seconds_to_ready is not None:
            self._instruments.runner_load.labels(*runner.labels, start).observe(runner.seconds_to_ready)

    def _show(self) -> None:
        residues = self._residues()
        by_variant: dict[Labels, list[_Runner]] = {labels: [] for labels in self._kept | self._shown | residues.keys()}
        for runner in self._runners.values():
            by_variant.setdefault(runner.labels, []).append(runner)
        for labels, runners in by_variant.items():
            self._show_variant(labels, runners, residue=residues[labels])
        self._shown = self._kept | {labels for labels, size in residues.items() if size}
        for labels in self._kept:
            self._instruments.used(labels)

    def _show_variant(self, labels: Labels, runners: list[_Runner], *, residue: int) -> None:
        told = [runner.status for runner in runners if runner.status is not None]
        instruments = self._instruments
        instruments.runners_ready.labels(*labels).set(len(runners))
        instruments.runner_queued_rows.labels(*labels).set(sum(status.queued_rows for status in told))
        instruments.runner_requests.labels(*labels).set(sum(status.in_flight for status in told))
        sizes = {
            "pss": sum(status.pss_bytes for status in told),
            "peak": sum(status.peak_bytes for status in told),
            "residue": residue,
        }
        for kind, size in sizes.items():
            instruments.runner_memory.labels(*labels, kind).set(size)
        for mode in MODES:
            instruments.runner_mode.labels(*labels, mode).set(sum(status.mode == mode for status in told))
        tuning = told[0].tuning if told else None
        self._show_setting(labels, "latency", tuning.latency if tuning else None)
        self._show_setting(labels, "throughput", tuning.throughput if tuning else None)

    def _show_setting(self, labels: Labels, setting: str, point: CurvePoint | None) -> None:
        """Show a chosen setting; without a runner there is none, and all of it is 0."""
        instruments = self._instruments
        instruments.tuning_streams.labels(*labels, setting).set(point.streams if point else 0)
        instruments.tuning_threads.labels(*labels, setting).set(point.threads if point else 0)
        instruments.tuning_batch.labels(*labels, setting).set(point.batch if point else 0)
        instruments.tuning_p50.labels(*labels, setting).set(point.p50_seconds if point else 0)
        instruments.tuning_rate.labels(*labels, setting).set(point.rows_per_second if point else 0)

    def _residues(self) -> Counter[Labels]:
        """Return what processes still hold that serve no more; one that has ended holds nothing."""
        sizes: Counter[Labels] = Counter()
        for process, labels in list(self._leaving.items()):
            size = process.memory_bytes()
            sizes[labels] += size
            if not size:
                del self._leaving[process]
        return sizes


def _more(now: int, before: int) -> int:
    """Return what was added. Less than before is another runner under the same number: all of it is new."""
    return now - before if now >= before else now


def _nanoseconds(status: RunnerStatus, stage: str) -> int:
    times = {"queue": status.queue, "input": status.input, "compute": status.compute, "output": status.output}
    return times[stage].nanoseconds
