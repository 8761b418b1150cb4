"""Self-tuning: what this machine makes of streams, threads and rows, measured when a variant is loaded."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from app.domain.serving import CurvePoint, Knobs, Tuning
from app.domain.variants import Engine

BATCHES = (1, 2, 4, 8, 16, 32)
TURNS = 3
TURN_SECONDS = 0.02
MOST_SECONDS = 1.0
LEAST_RUNS = 2
GAIN = 1.05
"""So much faster a setting must be before it is worth its memory."""
BATCH_GAIN = 1.15
"""So much faster a batch twice as long must be before it is worth joining requests, which costs a copy and a wait."""

Run = Callable[[int], None]
"""Computes one batch in the lane of that number."""

Prepare = Callable[[int, int], Run]
"""Takes streams and rows; returns what computes batches of so many rows in any of so many lanes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What may be tried.

    Attributes:
        streams: in the order of trying, one first.
        pinned: streams of the throughput setting, if there is one and the user pinned them.
        threads: in all.
        most_rows: of a batch.
    """

    streams: tuple[int, ...]
    pinned: int | None
    threads: int
    most_rows: int


def space(knobs: Knobs, *, threads: int, most_rows: int) -> Space:
    """Return what the user left open: one stream, and powers of two up to one stream a thread."""
    if knobs.mode == "latency":
        streams: tuple[int, ...] = (1,)
    elif knobs.streams is not None:
        streams = (1, knobs.streams) if knobs.streams > 1 else (1,)
    else:
        streams = tuple(_powers(threads))
    return Space(
        streams=streams,
        pinned=None if knobs.mode == "latency" else knobs.streams,
        threads=threads,
        most_rows=min(most_rows, knobs.max_batch_size or most_rows),
    )


def _powers(most: int) -> Iterator[int]:
    number = 1
    while number < most:
        yield number
        number *= 2
    yield most


def tune(allowed: Space, prepare: Prepare, *, engine: Engine = "openvino") -> Tuning:
    """Measure the curve and choose from it.

    First every number of streams, with one request alone and with all streams busy; then, with the number that gave
    the most rows per second, batches that grow as long as that brings more. What is compared is measured in turns, for
    the machine may have other work; all of it ends after about `MOST_SECONDS`.
    """
    ends = time.monotonic() + MOST_SECONDS
    first = [(streams, busy, 1) for streams in allowed.streams for busy in sorted({1, streams})]
    curve = _in_turns(first, allowed.threads, prepare, engine)
    full = [point for point in curve if point.busy == point.streams]
    pinned = [point for point in full if point.streams == allowed.pinned]
    best = max(pinned or full, key=lambda point: point.rows_per_second)
    for batch in (rows for rows in BATCHES if 1 < rows <= allowed.most_rows):
        if time.monotonic() > ends:
            break
        settings = [(best.streams, best.busy, best.batch), (best.streams, best.busy, batch)]
        before, after = _in_turns(settings, allowed.threads, prepare, engine)
        curve.append(after)
        if after.rows_per_second < before.rows_per_second * BATCH_GAIN:
            break
        best = after
    return choose(curve, streams=allowed.pinned, most_rows=best.batch)


def _in_turns(
    settings: Sequence[tuple[int, int, int]], threads: int, prepare: Prepare, engine: Engine
) -> list[CurvePoint]:
    """Measure streams, busy ones and rows, each setting several times in turn."""
    seconds: list[list[float]] = [[] for _ in settings]
    for turn in range(TURNS):
        for place, (streams, busy, batch) in enumerate(settings):
            run = prepare(streams, batch)
            if turn == 0:
                for lane in range(busy):
                    run(lane)
            seconds[place] += _measure(run, busy=busy)
    points = []
    for taken, (streams, busy, batch) in zip(seconds, settings, strict=True):
        p50 = statistics.median(taken)  # for the rate too: a pause of the machine is no property of the setting
        rate = busy * batch / p50
        points.append(
            CurvePoint(
                streams=streams,
                threads=threads,
                busy=busy,
                batch=batch,
                p50_seconds=p50,
                rows_per_second=rate,
                engine=engine,
            )
        )
    return points


def choose(curve: Sequence[CurvePoint], *, streams: int | None = None, most_rows: int | None = None) -> Tuning:
    """Return the setting for one request alone, and the one with the most rows per second.

    Of settings that are within `GAIN` of the most rows per second, the one that answers soonest is taken; of those
    that answer one request about as soon, the one that the other setting uses too: it needs no second session.

    Args:
        streams: of the throughput setting, if they are pinned and were measured.
        most_rows: of a batch; longer ones were measured, and found not worth it.
    """
    full = [point for point in curve if point.busy == point.streams and point.batch <= (most_rows or point.batch)]
    allowed = [point for point in full if point.streams == streams] or full
    most = max(point.rows_per_second for point in allowed)
    throughput = min(
        (point for point in allowed if point.rows_per_second * GAIN >= most), key=lambda point: point.p50_seconds
    )
    alone = [point for point in curve if point.busy == 1 and point.batch == 1]
    latency = min(alone, key=lambda point: point.p50_seconds)
    gained = throughput.rows_per_second >= latency.rows_per_second * GAIN
    if streams is None and latency in full and not gained:
        throughput = latency
    for point in alone:
        if point.streams == throughput.streams and point.p50_seconds <= latency.p50_seconds * GAIN:
            latency = point
    return Tuning(curve=tuple(curve), latency=latency, throughput=throughput)


def _measure(run: Run, *, busy: int) -> list[float]:
    """Run so many streams side by side, again and again for a moment; return how long each run took.

    Between runs it rests as long as they took: what else this machine serves waits for one run at the most.
    """
    seconds: list[list[float]] = [[] for _ in range(busy)]
    ends = time.perf_counter() + TURN_SECONDS
    together = threading.Barrier(busy)
    others = [
        threading.Thread(target=_repeat, args=(run, lane, seconds[lane], together, ends), daemon=True)
        for lane in range(1, busy)
    ]
    for other in others:
        other.start()
    _repeat(run, 0, seconds[0], together, ends)
    for other in others:
        other.join()
    return [taken for lane in seconds for taken in lane]


def _repeat(run: Run, lane: int, seconds: list[float], together: threading.Barrier, ends: float) -> None:
    """Run one lane until its time is over; the streams begin every run together, and all stop after the same one."""
    try:
        while True:
            together.wait()
            began = time.perf_counter()
            run(lane)
            seconds.append(time.perf_counter() - began)
            if lane == 0:
                time.sleep(seconds[-1])
                if len(seconds) >= LEAST_RUNS and time.perf_counter() > ends:
                    return
    except threading.BrokenBarrierError:
        return
    finally:
        together.abort()
