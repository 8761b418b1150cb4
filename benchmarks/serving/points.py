"""One measured point: a load for some seconds, and what came of it."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.serving import usage
from benchmarks.serving.arithmetic import goodput, median, percentile, poisson_schedule
from benchmarks.serving.load import Call, Done, Outcome, opened
from benchmarks.serving.servers import Running

MOST_CONNECTIONS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a load for some seconds gave.

    Attributes:
        per_second: right answers, over the time in which requests were sent.
        p50_ms, p95_ms, p99_ms: of right answers, from the moment each request was due.
        good_per_second: right answers within the limit, where the load had one.
        cpu_ms: processor time of the server's tree for each right answer.
        others_cores: how many cores something else kept busy meanwhile: above a tenth the times mean little.
        wrong: answers of status 200 that were not the golden ones.
        refused, late, failed, broken, unsent: as in `Outcome`.
    """

    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    good_per_second: float = 0.0
    cpu_ms: float = 0.0
    others_cores: float = 0.0
    wrong: int = 0
    refused: int = 0
    late: int = 0
    failed: int = 0
    broken: int = 0
    unsent: int = 0

    @property
    def errors(self) -> int:
        """All that was neither a right answer nor a refusal."""
        return self.wrong + self.late + self.failed + self.broken


def closed(running: Running, *, connections: int, seconds: float, warm_seconds: float = 0.5) -> Point:
    """Keep so many connections busy for so long, after a warm-up that is not counted."""
    done: list[Done] = []
    load = opened(running.port, running.calls, connections=connections, done=done)
    try:
        load.closed_loop(seconds=warm_seconds)
        done.clear()
        before, machine, own = usage.processor_seconds(running.root), usage.machine_seconds(), time.process_time()
        began, ended = load.closed_loop(seconds=seconds)
        took = time.monotonic() - began
        used = usage.processor_seconds(running.root) - before
        others = usage.machine_seconds() - machine - used - (time.process_time() - own)
    finally:
        load.close()
    point = summary(done, began=began, seconds=ended - began, used=used)
    return replace(point, others_cores=max(0.0, others / took))


def open_loop(
    running: Running, *, rate: float, seconds: float, limit_seconds: float, seed: int = 1
) -> tuple[Point, list[Done]]:
    """Ask at a Poisson process's moments, `rate` a second; an answer is good within `limit_seconds`."""
    done: list[Done] = []
    load = opened(running.port, running.calls, connections=MOST_CONNECTIONS, done=done)
    schedule = poisson_schedule(rate=rate, seconds=seconds, seed=seed)
    try:
        before = usage.processor_seconds(running.root)
        began = load.open_loop(schedule, give_up_seconds=limit_seconds)
        used = usage.processor_seconds(running.root) - before
    finally:
        load.close()
    return summary(done, began=began, seconds=seconds, used=used, limit_seconds=limit_seconds, late_too=True), done


def summary(
    done: Sequence[Done],
    *,
    began: float,
    seconds: float,
    used: float = 0.0,
    limit_seconds: float = float("inf"),
    late_too: bool = False,
) -> Point:
    """Sum up finished requests.

    Args:
        used: processor seconds of the server.
        late_too: count right answers that came after the block as well: an open loop's requests are due inside it.
    """
    outcomes = Counter(one.outcome for one in done)
    right = [one for one in done if one.outcome is Outcome.RIGHT]
    latencies = [one.latency for one in right]
    counted = len(right) if late_too else sum(one.ended <= began + seconds for one in right)
    return Point(
        per_second=counted / seconds,
        p50_ms=1000 * percentile(latencies, 0.50),
        p95_ms=1000 * percentile(latencies, 0.95),
        p99_ms=1000 * percentile(latencies, 0.99),
        good_per_second=goodput(latencies, limit=limit_seconds, seconds=seconds),
        cpu_ms=1000 * used / max(1, len(right)),
        wrong=outcomes[Outcome.WRONG],
        refused=outcomes[Outcome.REFUSED],
        late=outcomes[Outcome.LATE],
        failed=outcomes[Outcome.FAILED],
        broken=outcomes[Outcome.BROKEN],
        unsent=outcomes[Outcome.UNSENT],
    )


def middle(points: Sequence[Point]) -> Point:
    """Return the median of each measure over repeats; of errors the sum, for none is forgotten."""

    def typical(measure: Callable[[Point], float]) -> float:
        return median([measure(point) for point in points])

    return Point(
        per_second=typical(lambda point: point.per_second),
        p50_ms=typical(lambda point: point.p50_ms),
        p95_ms=typical(lambda point: point.p95_ms),
        p99_ms=typical(lambda point: point.p99_ms),
        good_per_second=typical(lambda point: point.good_per_second),
        cpu_ms=typical(lambda point: point.cpu_ms),
        others_cores=typical(lambda point: point.others_cores),
        wrong=sum(point.wrong for point in points),
        refused=sum(point.refused for point in points),
        late=sum(point.late for point in points),
        failed=sum(point.failed for point in points),
        broken=sum(point.broken for point in points),
        unsent=sum(point.unsent for point in points),
    )


def with_deadline(calls: Sequence[Call], *, seconds: float) -> list[Call]:
    """Return the calls with the header that tells Octet their deadline."""
    line = f"\r\nX-Request-Timeout-Ms: {int(seconds * 1000)}\r\n\r\n".encode()
    return [Call(head=call.head[:-4] + line, body=call.body, check=call.check) for call in calls]
