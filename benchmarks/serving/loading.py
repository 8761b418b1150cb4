"""Loading and unloading: what it costs the neighbours, and what memory is left after many times."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

from app.client import Octet
from benchmarks.serving import charts, octet, usage
from benchmarks.serving.arithmetic import median
from benchmarks.serving.octet import EmbeddedOctet
from benchmarks.serving.outcome import Result, table
from benchmarks.serving.points import Point, open_loop
from benchmarks.serving.servers import Running
from benchmarks.serving.subject import MODEL, Subject

_RATE = 60.0
_LIMIT_SECONDS = 1.0
_OTHER, _LOADED = f"{MODEL}@float32", f"{MODEL}@int8"


def neighbours(subject: Subject, *, seconds: float, repeats: int) -> Result:
    """Ask one variant at a steady rate, alone and while another is loaded again and again, in turn."""
    quiet: list[Point] = []
    beside: list[Point] = []
    loads: list[float] = []
    with EmbeddedOctet().started(subject) as (client, root):
        port = octet.port_of(client)
        door, calls = octet.open_door(port, subject, "float32")
        running = Running(port=port, root=root.pid, cold_seconds=0, calls=calls)
        for _ in range(repeats):
            client.unload(_OTHER)
            quiet.append(_steady(running, seconds=seconds))
            with _loading(client, loads):
                beside.append(_steady(running, seconds=seconds))
    ratios = [one.p99_ms / other.p99_ms for one, other in zip(beside, quiet, strict=True)]
    rows = [
        [name, *(f"{median([getattr(one, key) for one in points]):.2f}" for key in ("p50_ms", "p95_ms", "p99_ms")),
         str(sum(one.errors + one.refused for one in points))]
        for name, points in (("alone", quiet), ("while another is loaded", beside))
    ]  # fmt: skip
    text = (
        f"### int8 at {_RATE:g} requests/s ({door}) while float32 is loaded and unloaded\n\n"
        f"{repeats} interleaved repeats of {seconds:g} s; {len(loads)} loads, median {median(loads):.2f} s. "
        f"p99 while loading over p99 alone, median of the repeats: **{median(ratios):.2f}**.\n\n"
        f"{table(['', 'p50 ms', 'p95 ms', 'p99 ms', 'errors'], rows)}\n"
    )
    groups = {
        share: {
            name: median([getattr(one, f"{share}_ms") for one in points])
            for name, points in (("alone", quiet), ("while another is loaded", beside))
        }
        for share in ("p50", "p95", "p99")
    }
    plot = charts.bars("A neighbour's latency", groups, up="ms")
    numbers = {"alone": [asdict(one) for one in quiet], "beside": [asdict(one) for one in beside], "loads": loads}
    return Result(name="neighbours", text=text, plot=plot, numbers=numbers)


def _steady(running: Running, *, seconds: float) -> Point:
    return open_loop(replace(running), rate=_RATE, seconds=seconds, limit_seconds=_LIMIT_SECONDS)[0]


@contextmanager
def _loading(client: Octet, loads: list[float]) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=_load_again, args=(client.base_url, loads, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _load_again(base_url: str, loads: list[float], over: threading.Event) -> None:
    with Octet(base_url) as client:
        while not over.is_set():
            began = time.monotonic()
            client.load(_OTHER)
            loads.append(time.monotonic() - began)
            client.unload(_OTHER)


def cycles(subject: Subject, *, count: int) -> Result:
    """Load and unload one variant so many times, and read the memory while it is unloaded."""
    loads: list[float] = []
    sizes: list[tuple[float, float]] = []
    runners = 0
    with EmbeddedOctet().started(subject) as (client, root):
        for number in range(count + 1):
            began = time.monotonic()
            client.load(_LOADED)
            loads.append(time.monotonic() - began)
            loaded = usage.pss_mebibytes(root.pid)
            client.unload(_LOADED)
            sizes.append((number, usage.pss_mebibytes(root.pid)))
        runners = len(usage.with_words(root.pid, octet.RUNNER))
    first, last = sizes[0][1], sizes[-1][1]
    rows = [
        [
            f"{loaded:.1f}",
            f"{first:.1f}",
            f"{last:.1f}",
            f"{last / first - 1:+.1%}",
            str(runners),
            f"{median(loads):.2f}",
        ]
    ]
    head = [
        "loaded, MiB",
        "after the first unload, MiB",
        f"after {count} more, MiB",
        "growth",
        "runners left",
        "load, median s",
    ]
    text = f"### {count} loads and unloads: memory of all of Octet's processes (PSS)\n\n{table(head, rows)}\n"
    plot = charts.lines("Memory after each unload", {"all processes": sizes}, across="cycle", up="PSS, MiB")
    return Result(name="cycles", text=text, plot=plot, numbers={"loads": loads, "sizes": sizes})
