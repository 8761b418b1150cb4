"""What runners have done since they started, in the form of the Open Inference Protocol's statistics extension."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from app.domain.names import Reference
from app.domain.serving import RunnerStatus, Timing

KEEP_SECONDS = 1.0
_NS_PER_MS = 1_000_000

Key = tuple[str, int]
"""A model and its version."""

Ask = Callable[[], Awaitable[Sequence[RunnerStatus]]]


class RecentStatistics:
    """Remembers for a second how the runners fare: each is interrupted to tell, however many ask."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asking = asyncio.Lock()
        self._told: Sequence[RunnerStatus] = ()
        self._until = -math.inf

    async def told(self, ask: Ask) -> Sequence[RunnerStatus]:
        """Return how every runner of this machine fares, or did a moment ago; `ask` asks them."""
        async with self._asking:
            now = self._clock()
            if now >= self._until:
                self._told = await ask()
                self._until = now + KEEP_SECONDS
        return self._told

    def forget(self) -> None:
        """Ask again next time: it is known that something has changed."""
        self._until = -math.inf


def is_meant(reference: Reference, runner: RunnerStatus) -> bool:
    """Whether a runner holds what a reference names."""
    return (
        runner.model == reference.name
        and reference.version in (None, runner.version)
        and reference.variant in (None, runner.variant)
    )


def model_statistics(runners: Iterable[RunnerStatus], *, idle: Iterable[Key]) -> list[dict[str, Any]]:
    """Sum runners up: one entry for each version of a model, in which `octet` tells them apart.

    Args:
        idle: versions that get an entry even if no runner holds them.
    """
    found = sorted(runners, key=lambda each: (each.model, each.version, each.variant, each.instance))
    entries: dict[Key, Sequence[RunnerStatus]] = dict.fromkeys(idle, ())
    entries |= {key: tuple(group) for key, group in groupby(found, key=lambda each: (each.model, each.version))}
    return [_entry(key, entries[key]) for key in sorted(entries)]


def _entry(key: Key, runners: Sequence[RunnerStatus]) -> dict[str, Any]:
    model, version = key
    return {
        "name": model,
        "version": str(version),
        "last_inference": max((_epoch_ms(each.last_inference_ns) for each in runners), default=0),
        "inference_count": sum(each.rows for each in runners),
        "execution_count": sum(batch.runs.count for each in runners for batch in each.batches),
        "inference_stats": _inference_stats(runners),
        "batch_stats": _batch_stats(runners),
        "octet": [_own(each) for each in runners],
    }


def _epoch_ms(monotonic_ns: int) -> int:
    """Turn the machine's monotonic clock into milliseconds since 1970; 0, which means never, stays so."""
    return (time.time_ns() - (time.monotonic_ns() - monotonic_ns)) // _NS_PER_MS if monotonic_ns else 0


def _inference_stats(runners: Sequence[RunnerStatus]) -> dict[str, dict[str, int]]:
    queue, given = _sum(each.queue for each in runners), _sum(each.input for each in runners)
    compute, taken = _sum(each.compute for each in runners), _sum(each.output for each in runners)
    whole = queue.nanoseconds + given.nanoseconds + compute.nanoseconds + taken.nanoseconds
    return {
        "success": _duration(Timing(count=taken.count, nanoseconds=whole)),
        "fail": _duration(Timing(count=sum(sum(each.refused.values()) for each in runners))),
        "queue": _duration(queue),
        "compute_input": _duration(given),
        "compute_infer": _duration(compute),
        "compute_output": _duration(taken),
    }


def _batch_stats(runners: Sequence[RunnerStatus]) -> list[dict[str, Any]]:
    batches = [batch for each in runners for batch in each.batches]
    return [
        {
            "batch_size": rows,
            "compute_infer": _duration(_sum(batch.runs for batch in batches if batch.rows == rows)),
        }
        for rows in sorted({batch.rows for batch in batches})
    ]


def _own(runner: RunnerStatus) -> dict[str, Any]:
    """Return what the protocol has no word for: how the runner tuned itself, what waits, what it takes."""
    return {
        "variant": runner.variant,
        "instance": runner.instance,
        "engine": runner.engine,
        "mode": runner.mode,
        "knobs": runner.knobs,
        "tuning": runner.tuning,
        "backlog": {"requests": runner.in_flight, "queued_rows": runner.queued_rows},
        "refused": runner.refused,
        "memory": {"pss_bytes": runner.pss_bytes, "peak_bytes": runner.peak_bytes},
        "load_seconds": runner.load_seconds,
    }


def _sum(timings: Iterable[Timing]) -> Timing:
    found = list(timings)
    return Timing(count=sum(each.count for each in found), nanoseconds=sum(each.nanoseconds for each in found))


def _duration(timing: Timing) -> dict[str, int]:
    return {"count": timing.count, "ns": timing.nanoseconds}
