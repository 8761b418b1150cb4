"""The process that holds the model is killed (SIGKILL) every few seconds under 8 clients."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import psutil

from benchmarks.serving import charts, octet, usage
from benchmarks.serving.arithmetic import longest_gap, median
from benchmarks.serving.load import Call, Done, Outcome, opened
from benchmarks.serving.octet import EmbeddedOctet
from benchmarks.serving.outcome import Result, table
from benchmarks.serving.servers import Server, ServerDidNotStart
from benchmarks.serving.subject import MODEL, Subject

CLIENTS = 8
EVERY_SECONDS = 5.0
GIVE_UP_SECONDS = 4.0
"""When a client no longer waits for an answer and asks anew: some servers never answer what a dead process had."""
_FIRST_SECONDS = 2.0
Victims = Callable[[], Sequence[psutil.Process]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kills:
    """What the kills did.

    Attributes:
        gaps_ms: after each kill, the longest time without a right answer.
        back: whether a right answer came after the last kill.
    """

    kills: int
    right: int
    wrong: int
    refused: int
    failed: int
    gaps_ms: Sequence[float]
    back: bool
    per_quarter: Sequence[tuple[float, float]]


def kill(subject: Subject, servers: Mapping[str, Server], *, seconds: float) -> Result:
    """Kill every server's model process in turn; Octet's with one instance and with two."""
    found: dict[str, Kills | str] = {}
    for name, server in servers.items():
        print(f"kill: {server.title}", file=sys.stderr)
        if isinstance(server, EmbeddedOctet):
            for instances in (1, 2):
                found[f"{server.title}, {instances} instance(s)"] = _octet(
                    subject, server, instances=instances, seconds=seconds
                )
        else:
            found[server.title] = _peer(subject, server, name=name, seconds=seconds)
    rows = [
        [title, *(_row(one) if isinstance(one, Kills) else [f"not measured: {one[:160]}", *[""] * 5])]
        for title, one in found.items()
    ]
    head = ["", "kills", "right", "wrong", "failed", "refused (503)", "gap after a kill, median/worst ms"]
    text = (
        f"### The model's process killed every {EVERY_SECONDS:g} s for {seconds:g} s under {CLIENTS} clients\n\n"
        f"A client gives up after {GIVE_UP_SECONDS:g} s and asks anew.\n\n"
        f"{table(head, rows)}\n"
    )
    curves = {title: one.per_quarter for title, one in found.items() if isinstance(one, Kills)}
    plot = charts.lines(
        "Right answers while the model's process is killed", curves, across="seconds", up="right answers / s"
    )
    numbers = {title: one if isinstance(one, str) else asdict(one) for title, one in found.items()}
    return Result(name="kill", text=text, plot=plot, numbers=numbers)


def _peer(subject: Subject, server: Server, *, name: str, seconds: float) -> Kills | str:
    try:
        with server.running(subject, body="float32", streams=server.streams[0]) as running:
            return under_kills(
                running.port, running.calls, seconds=seconds, victims=lambda: usage.holding_the_engine(running.root)
            )
    except ServerDidNotStart as error:
        return f"{name}: {str(error).splitlines()[0]}"


def _octet(subject: Subject, server: EmbeddedOctet, *, instances: int, seconds: float) -> Kills | str:
    with server.started(subject) as (client, root):
        port = octet.port_of(client)
        if instances > 1 and (refusal := octet.load(client, MODEL, instances=instances)):
            return refusal
        _, calls = octet.open_door(port, subject, "float32")
        return under_kills(port, calls, seconds=seconds, victims=lambda: usage.with_words(root.pid, octet.RUNNER))


def under_kills(port: int, calls: Sequence[Call], *, seconds: float, victims: Victims) -> Kills:
    """Keep 8 connections busy and kill the first of the victims again and again, the last time well before the end."""
    done: list[Done] = []
    killed: list[float] = []
    over = threading.Event()
    killer = threading.Thread(
        target=_kill_again, args=(victims, killed, over, time.monotonic() + seconds - EVERY_SECONDS), daemon=True
    )
    load = opened(port, calls, connections=CLIENTS, done=done, timeout_seconds=GIVE_UP_SECONDS)
    killer.start()
    try:
        began, ended = load.closed_loop(seconds=seconds)
    finally:
        over.set()
        killer.join()
        load.close()
    outcomes = Counter(one.outcome for one in done)
    right = [one.ended for one in done if one.outcome is Outcome.RIGHT]
    edges = [*killed, ended]
    return Kills(
        kills=len(killed),
        right=len(right),
        wrong=outcomes[Outcome.WRONG],
        refused=outcomes[Outcome.REFUSED],
        failed=outcomes[Outcome.FAILED] + outcomes[Outcome.BROKEN] + outcomes[Outcome.LATE],
        gaps_ms=[
            1000 * longest_gap([at for at in right if start <= at < stop], begin=start, end=stop)
            for start, stop in pairwise(edges)
        ],
        back=any(at > max(killed, default=began) for at in right),
        per_quarter=_curve(right, began=began, seconds=seconds),
    )


def _kill_again(victims: Victims, killed: list[float], over: threading.Event, stop: float) -> None:
    pause = _FIRST_SECONDS
    while not over.wait(pause) and time.monotonic() < stop:
        pause = EVERY_SECONDS
        alive = victims()
        if alive:
            killed.append(time.monotonic())
            alive[0].kill()


def _curve(right: Sequence[float], *, began: float, seconds: float) -> list[tuple[float, float]]:
    counts = Counter(int((at - began) * 4) for at in right)
    return [(place / 4, 4.0 * counts[place]) for place in range(int(seconds * 4))]


def _row(one: Kills) -> list[str]:
    return [str(one.kills), str(one.right), str(one.wrong), str(one.failed), str(one.refused), _gaps(one)]


def _gaps(one: Kills) -> str:
    if not one.gaps_ms:
        return "nothing was found to kill"
    if not one.back:
        return f"not back {one.gaps_ms[-1] / 1000:.0f} s after the last"
    return f"{median(one.gaps_ms):.0f} / {max(one.gaps_ms):.0f}"
