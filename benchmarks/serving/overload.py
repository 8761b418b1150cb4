"""Open loops: Poisson arrivals from half to twice the knee; twice the knee for half a minute, and what comes after.

The knee is the server's own throughput at 16 clients, measured just before. A request that is not answered rightly
within the limit counts for nothing.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.serving import charts
from benchmarks.serving.arithmetic import goodput, percentile, poisson_schedule, seconds_to_normal
from benchmarks.serving.load import Done, Outcome, moments, opened
from benchmarks.serving.outcome import Result, table
from benchmarks.serving.points import MOST_CONNECTIONS, Point, closed, open_loop, with_deadline
from benchmarks.serving.servers import Running, Server, ServerDidNotStart
from benchmarks.serving.subject import Subject

LIMIT_SECONDS = 0.1
SHARES = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
_KNEE_CLIENTS = 16
_KNEE_SECONDS = 3.0
_CHOICE_SECONDS = 1.5
_CALM = 0.5
_BEFORE_SECONDS, _AFTER_SECONDS = 5.0, 10.0


def rates(
    subject: Subject, servers: Mapping[str, Server], *, seconds: float, limit_seconds: float = LIMIT_SECONDS
) -> Result:
    """Offer every server shares of its knee and count what comes back in time."""
    rows: list[list[str]] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    numbers: dict[str, object] = {}
    for name, server in servers.items():
        try:
            with server.running(subject, body="float32", streams=busy_streams(subject, server)) as running:
                measured = _rates(running, seconds=seconds, limit_seconds=limit_seconds)
        except ServerDidNotStart as error:
            rows.append([server.title, f"not measured: {str(error).splitlines()[0][:120]}", *[""] * 6])
            continue
        knee, points = measured
        rows += [_rate_row(server.title, share, knee=knee, point=point) for share, point in points.items()]
        curves[server.title] = [(share * 100, point.good_per_second / knee) for share, point in points.items()]
        numbers[name] = {"knee": knee, "points": {share: asdict(point) for share, point in points.items()}}
    head = [
        "",
        "offered / knee",
        "offered/s",
        "goodput/s",
        "goodput / knee",
        "p50/p95/p99 ms",
        "refused",
        "errors, unsent",
    ]
    text = (
        f"### Open loop, float32 body, a good answer comes within {limit_seconds * 1000:.0f} ms\n\n"
        f"{seconds:g} s each; latency from the moment a request was due.\n\n{table(head, rows)}\n"
    )
    plot = charts.lines("Goodput under load", curves, across="offered, % of the knee", up="goodput / knee")
    return Result(name="rates", text=text, plot=plot, numbers=numbers)


def busy_streams(subject: Subject, server: Server) -> int:
    """Return the number of streams with which a server answers most under load."""
    if len(server.streams) == 1:
        return server.streams[0]
    knees: dict[int, float] = {}
    for streams in server.streams:
        with server.running(subject, body="float32", streams=streams) as running:
            knees[streams] = closed(running, connections=_KNEE_CLIENTS, seconds=_CHOICE_SECONDS).per_second
    return max(knees, key=lambda streams: knees[streams])


def _rates(running: Running, *, seconds: float, limit_seconds: float) -> tuple[float, dict[float, Point]]:
    knee = closed(running, connections=_KNEE_CLIENTS, seconds=_KNEE_SECONDS).per_second
    asked = replace(running, calls=with_deadline(running.calls, seconds=limit_seconds))
    points = {
        share: open_loop(asked, rate=share * knee, seconds=seconds, limit_seconds=limit_seconds)[0] for share in SHARES
    }
    return knee, points


def _rate_row(title: str, share: float, *, knee: float, point: Point) -> list[str]:
    return [
        title,
        f"{share:.0%}",
        f"{share * knee:.0f}",
        f"{point.good_per_second:.0f}",
        f"{point.good_per_second / knee:.2f}",
        f"{point.p50_ms:.1f}/{point.p95_ms:.1f}/{point.p99_ms:.1f}",
        f"{point.refused + point.late}",
        f"{point.errors - point.late}, {point.unsent}",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """What half a minute at twice the knee did."""

    knee: float
    goodput: float
    p99_before_ms: float
    p99_good_ms: float
    p99_after_ms: float
    normal_after_seconds: float
    refused: int
    late: int
    errors: int
    unsent: int
    per_half_second: Sequence[tuple[float, float]]


def overload(
    subject: Subject, servers: Mapping[str, Server], *, seconds: float, limit_seconds: float = LIMIT_SECONDS
) -> Result:
    """Offer twice the knee for so long, between calm times at half the knee."""
    storms: dict[str, Storm] = {}
    failed: list[list[str]] = []
    for server in servers.values():
        print(f"overload: {server.title}", file=sys.stderr)
        try:
            with server.running(subject, body="float32", streams=busy_streams(subject, server)) as running:
                storms[server.title] = storm(running, seconds=seconds, limit_seconds=limit_seconds)
        except ServerDidNotStart as error:
            failed.append([server.title, f"not measured: {str(error).splitlines()[0][:120]}", *[""] * 6])
    rows = [[title, *_storm_row(one)] for title, one in storms.items()]
    head = ["", "knee/s", "goodput/s", "goodput / knee", "p99 before, good ones during, after, ms"]
    head += ["back to normal after s", "refused, too late", "errors, unsent"]
    text = (
        f"### Twice the knee for {seconds:g} s, float32 body\n\n"
        f"A good answer comes within {limit_seconds * 1000:.0f} ms.\n\n"
        f"{table(head, [*rows, *failed])}\n"
    )
    curves = {title: one.per_half_second for title, one in storms.items()}
    plot = charts.lines(
        f"Twice the knee from {_BEFORE_SECONDS:g} s on", curves, across="seconds", up="good answers / s"
    )
    return Result(name="overload", text=text, plot=plot, numbers={title: asdict(one) for title, one in storms.items()})


def storm(running: Running, *, seconds: float, limit_seconds: float) -> Storm:
    """Measure the knee, then a calm time, twice the knee, and a calm time again, in one go."""
    knee = closed(running, connections=_KNEE_CLIENTS, seconds=_KNEE_SECONDS).per_second
    done: list[Done] = []
    load = opened(
        running.port, with_deadline(running.calls, seconds=limit_seconds), connections=MOST_CONNECTIONS, done=done
    )
    begin, end = _BEFORE_SECONDS, _BEFORE_SECONDS + seconds
    schedule = [
        start + moment
        for start, length, share in ((0.0, begin, _CALM), (begin, seconds, 2.0), (end, _AFTER_SECONDS, _CALM))
        for moment in poisson_schedule(rate=share * knee, seconds=length, seed=int(start) + 1)
    ]
    try:
        began = load.open_loop(schedule, give_up_seconds=limit_seconds)
    finally:
        load.close()
    before = [one for one in done if one.due < began + begin]
    during = [one for one in done if began + begin <= one.due < began + end]
    after = [one for one in done if one.due >= began + end]
    good = [one.latency for one in during if one.outcome is Outcome.RIGHT and one.latency <= limit_seconds]
    counted = [one.outcome for one in during]
    return Storm(
        knee=knee,
        goodput=goodput(good, limit=limit_seconds, seconds=seconds),
        p99_before_ms=_p99(before),
        p99_good_ms=1000 * percentile(good, 0.99),
        p99_after_ms=_p99(after),
        normal_after_seconds=seconds_to_normal(list(moments(after, good_within=limit_seconds)), since=began + end),
        refused=counted.count(Outcome.REFUSED) + counted.count(Outcome.LATE),
        late=counted.count(Outcome.RIGHT) - len(good),
        errors=sum(counted.count(one) for one in (Outcome.WRONG, Outcome.FAILED, Outcome.BROKEN)),
        unsent=counted.count(Outcome.UNSENT),
        per_half_second=_curve(done, began=began, limit_seconds=limit_seconds),
    )


def _storm_row(one: Storm) -> list[str]:
    return [
        f"{one.knee:.0f}",
        f"{one.goodput:.0f}",
        f"{one.goodput / one.knee:.2f}",
        f"{one.p99_before_ms:.0f}, {one.p99_good_ms:.0f}, {one.p99_after_ms:.0f}",
        f"{one.normal_after_seconds:.1f}",
        f"{one.refused}, {one.late}",
        f"{one.errors}, {one.unsent}",
    ]


def _p99(done: Sequence[Done]) -> float:
    return 1000 * percentile([one.latency for one in done if one.outcome is Outcome.RIGHT], 0.99)


def _curve(done: Sequence[Done], *, began: float, limit_seconds: float) -> list[tuple[float, float]]:
    counts: dict[int, int] = {}
    for due, good in moments(done, good_within=limit_seconds):
        counts[int((due - began) * 2)] = counts.get(int((due - began) * 2), 0) + good
    return [(place / 2, 2.0 * count) for place, count in sorted(counts.items())]
