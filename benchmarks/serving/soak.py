"""Very many requests, good and bad: answers stay right, and gateway and runner keep their size."""

import time
from collections import Counter
from dataclasses import dataclass, field

import psutil

from benchmarks.serving import charts, octet, usage
from benchmarks.serving.load import Call, Done, Load, Outcome
from benchmarks.serving.noop import bad_calls, good_calls
from benchmarks.serving.octet import EmbeddedOctet
from benchmarks.serving.outcome import Result, table
from benchmarks.serving.subject import Subject

CONNECTIONS = 16
GOOD_FOR_EACH_BAD = 9
_SAMPLES = 50
_SETTLED = 0.1


@dataclass(slots=True)
class _Watch:
    """Counts outcomes, and reads the processes' memory every so many requests."""

    every: int
    processes: dict[str, list[psutil.Process]]
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __call__(self, done: Done) -> None:
        self.outcomes[done.outcome] += 1
        if (count := self.outcomes.total()) % self.every == 0:
            for name, processes in self.processes.items():
                size = sum(map(usage.pss, processes)) / usage.MEBIBYTE
                self.memory.setdefault(name, []).append((count, size))


def soak(subject: Subject, *, requests: int) -> Result:
    """Send so many requests, a tenth of them bad in a dozen ways, and watch the memory (PSS)."""
    with EmbeddedOctet().started(subject) as (client, root):
        port = octet.port_of(client)
        _, good = good_calls(port)
        parts = {"gateway": octet.GATEWAY, "runner": octet.RUNNER}
        watch = _Watch(
            every=max(1, requests // _SAMPLES),
            processes={name: usage.with_words(root.pid, words) for name, words in parts.items()},
        )
        load = Load(port, mixed(good, bad_calls()), connections=CONNECTIONS, on_done=watch, timeout_seconds=30)
        began = time.monotonic()
        try:
            load.closed_loop(requests=requests)
        finally:
            load.close()
        seconds = time.monotonic() - began
    rows = [[name, *_growth(sizes)] for name, sizes in watch.memory.items()]
    head = ["", "after the first tenth, MiB", "at the end, MiB", "most, MiB", "growth"]
    counts = ", ".join(
        f"{outcome.name.lower()} {watch.outcomes[outcome]:,}" for outcome in Outcome if watch.outcomes[outcome]
    )
    text = (
        f"### {requests:,} requests, one in {GOOD_FOR_EACH_BAD + 1} bad, {CONNECTIONS} clients, {seconds:.0f} s\n\n"
        f"Right means: the golden answer, or for a bad request a clear 4xx. {counts}.\n\n{table(head, rows)}\n"
    )
    plot = charts.lines("Memory over the requests", watch.memory, across="requests", up="PSS, MiB")
    numbers = {
        "seconds": seconds,
        "outcomes": {one.name: count for one, count in watch.outcomes.items()},
        "memory": watch.memory,
    }
    return Result(name="soak", text=text, plot=plot, numbers=numbers)


def mixed(good: list[Call], bad: list[Call]) -> list[Call]:
    """Return the requests in turn: so many good ones, then one bad one, of every kind once."""
    calls: list[Call] = []
    for number, one in enumerate(bad):
        calls += [good[(number + place) % len(good)] for place in range(GOOD_FOR_EACH_BAD)]
        calls.append(one)
    return calls


def _growth(sizes: list[tuple[float, float]]) -> list[str]:
    settled = sizes[int(len(sizes) * _SETTLED)][1]
    last = sizes[-1][1]
    return [f"{settled:.1f}", f"{last:.1f}", f"{max(size for _, size in sizes):.1f}", f"{last / settled - 1:+.1%}"]
