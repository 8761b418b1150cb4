"""All servers under closed loops, beside the in-process ceiling: one after the other, again and again."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.serving import charts, usage
from benchmarks.serving.arithmetic import median
from benchmarks.serving.calls import Body
from benchmarks.serving.ceiling import NAME, TITLE, ceiling
from benchmarks.serving.outcome import Result, table
from benchmarks.serving.points import Point, closed, middle
from benchmarks.serving.servers import Server, ServerDidNotStart
from benchmarks.serving.subject import Subject

CONCURRENCIES = (1, 4, 16, 64)
_BUSY = 16
_ENDS = (1, _BUSY)
_CEILING_SECONDS = 0.8
Key = tuple[str, int, int]
"""Server, streams, concurrency."""
Measured = tuple[Point, float]
"""A point, and the ceiling's answers a second just before: what the machine could do at that time."""


@dataclass(slots=True)
class Found:
    """What the repeats gave for one body."""

    points: dict[Key, list[Measured]] = field(default_factory=lambda: defaultdict(list))
    pss: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cold: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    notes: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def compare(
    subject: Subject,
    servers: Mapping[str, Server],
    *,
    body: Body,
    repeats: int,
    seconds: float,
    concurrencies: Sequence[int] = CONCURRENCIES,
) -> Result:
    """Measure every server with every number of streams, interleaved; each end takes its best streams."""
    found = Found()
    for repeat in range(repeats):
        for name, server in servers.items():
            if body in server.takes:
                print(f"{body}, repeat {repeat + 1} of {repeats}: {server.title}", file=sys.stderr)
                _server(subject, found, name, server, body=body, seconds=seconds, concurrencies=concurrencies)
    return _result(found, servers, body=body, repeats=repeats, seconds=seconds, concurrencies=concurrencies)


def _ceiling(subject: Subject, found: Found, *, body: Body) -> Mapping[int, float]:
    """Return the ceiling at both ends as it is now."""
    now: dict[int, float] = {}
    for (jobs, streams), point in ceiling(subject, body=body, concurrencies=_ENDS, seconds=_CEILING_SECONDS).items():
        now[jobs] = max(now.get(jobs, 0.0), point.per_second)
        found.points[NAME, streams, jobs].append((point, point.per_second))
    return now


def _server(
    subject: Subject,
    found: Found,
    name: str,
    server: Server,
    *,
    body: Body,
    seconds: float,
    concurrencies: Sequence[int],
) -> None:
    reason = server.unusable()
    if reason:
        found.failures[name] = reason
        return
    now = _ceiling(subject, found, body=body)
    for streams in server.streams:
        try:
            with server.running(subject, body=body, streams=streams) as running:
                for connections in concurrencies:
                    point = closed(running, connections=connections, seconds=seconds)
                    found.points[name, streams, connections].append((point, now[1 if connections == 1 else _BUSY]))
                found.pss[name].append(usage.pss_mebibytes(running.root))
                found.cold[name].append(running.cold_seconds)
                found.notes[name] = running.note
        except ServerDidNotStart as error:
            found.failures[name] = str(error).splitlines()[0]
            print(error, file=sys.stderr)


def best(found: Found, name: str, connections: int) -> tuple[int, list[Measured]]:
    """Return the number of streams that gave most answers a second at this concurrency, and what it gave."""
    tried = {key[1]: points for key, points in found.points.items() if key[0] == name and key[2] == connections}
    streams = max(tried, key=lambda one: median([point.per_second for point, _ in tried[one]]))
    return streams, tried[streams]


def share(measured: Sequence[Measured]) -> float:
    """Return the median share of the ceiling just before; for four clients and more, of that at sixteen."""
    return median([point.per_second / most for point, most in measured])


def ratio(over: Sequence[Measured], under: Sequence[Measured]) -> float:
    """Return the median of the ratios of throughput, each within one repeat."""
    pairs = zip(over, under, strict=False)
    return median([one.per_second / other.per_second for (one, _), (other, _) in pairs])


def _result(
    found: Found,
    servers: Mapping[str, Server],
    *,
    body: Body,
    repeats: int,
    seconds: float,
    concurrencies: Sequence[int],
) -> Result:
    titles = {name: server.title for name, server in servers.items() if body in server.takes}
    measured = [name for name in titles if any(key[0] == name for key in found.points)]
    rows = [_ceiling_row(found, concurrencies)] if measured else []
    rows += [list(_row(found, name, titles[name], concurrencies)) for name in measured]
    head = ["", *(f"c = {count}" for count in concurrencies), "CPU ms / request", "PSS MiB", "cold start s"]
    head += ["wrong, errors", "others, cores"]
    rows += [[titles[name], "not measured", *[""] * (len(head) - 2)] for name in found.failures if name not in measured]
    text = (
        f"### Closed loop, {body} body\n\n{repeats} interleaved repeats of {seconds:g} s, medians. A cell: requests/s, "
        f"(share of the ceiling just before), p50/p95/p99 in ms, streams that were best there. The last column: cores "
        f"that something else kept busy meanwhile.\n\n{table(head, rows)}\n"
    )
    text += "".join(f"\n- {titles[name]}: {reason[:300]}\n" for name, reason in found.failures.items())
    groups = {
        f"c = {count}": {titles[name]: share(best(found, name, count)[1]) for name in measured}
        for count in concurrencies
    }
    plot = charts.bars(f"Throughput, {body} body, beside the ceiling", groups, up="share of the in-process ceiling")
    return Result(
        name=f"peers-{body}", text=text + _beside(found, titles, concurrencies), plot=plot, numbers=_numbers(found)
    )


def _ceiling_row(found: Found, concurrencies: Sequence[int]) -> list[str]:
    cells = [_cell(found, NAME, count) if count in _ENDS else "" for count in concurrencies]
    busy = middle([point for point, _ in best(found, NAME, _BUSY)[1]])
    return [TITLE, *cells, f"{busy.cpu_ms:.2f}", "-", "-", _errors(found, NAME), "-"]


def _row(found: Found, name: str, title: str, concurrencies: Sequence[int]) -> Iterator[str]:
    note = found.notes.get(name)
    yield f"{title}, {note}" if note else title
    for count in concurrencies:
        yield _cell(found, name, count)
    busy = middle([point for point, _ in best(found, name, _BUSY if _BUSY in concurrencies else concurrencies[-1])[1]])
    yield f"{busy.cpu_ms:.2f}"
    yield f"{max(found.pss[name]):.0f}" if found.pss[name] else "-"
    yield f"{median(found.cold[name]):.1f}" if found.cold[name] else "-"
    yield _errors(found, name)
    yield f"{busy.others_cores:.2f}"


def _cell(found: Found, name: str, count: int) -> str:
    streams, measured = best(found, name, count)
    point = middle([one for one, _ in measured])
    chosen = f", {streams} str." if streams else ""
    times = f"{point.p50_ms:.1f}/{point.p95_ms:.1f}/{point.p99_ms:.1f}"
    return f"{point.per_second:.0f} ({share(measured):.2f}) {times}{chosen}"


def _errors(found: Found, name: str) -> str:
    points = [point for key, measured in found.points.items() if key[0] == name for point, _ in measured]
    wrong = sum(point.wrong for point in points)
    return f"{wrong}, {sum(point.errors + point.refused for point in points) - wrong}"


def _beside(found: Found, titles: Mapping[str, str], concurrencies: Sequence[int]) -> str:
    names = {key[0] for key in found.points}
    if "octet" not in names:
        return ""
    rows = [
        [title, *(f"{ratio(best(found, 'octet', c)[1], best(found, name, c)[1]):.2f}" for c in concurrencies)]
        for name, title in titles.items()
        if name in names and name != "octet"
    ]
    return f"\nOctet's throughput as a multiple of\n\n{table(['', *(f'c = {c}' for c in concurrencies)], rows)}\n"


def _numbers(found: Found) -> object:
    points = [
        {
            "server": name,
            "streams": streams,
            "connections": connections,
            "points": [{**asdict(point), "ceiling": most} for point, most in measured],
        }
        for (name, streams, connections), measured in found.points.items()
    ]
    return {"points": points, "pss": dict(found.pss), "cold": dict(found.cold), "failures": found.failures}
