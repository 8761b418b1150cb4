"""Octet beside other servers; each subcommand prints a Markdown table and writes a plot.

    python -m benchmarks.serving install [PEER ...]     make the peers' virtual environments, outside the repository
    python -m benchmarks.serving peers                  closed loops: all servers, all bodies asked for, interleaved
    python -m benchmarks.serving rates                  open loops from half to twice the knee
    python -m benchmarks.serving overload               twice the knee for half a minute
    python -m benchmarks.serving kill                   the model's process killed every five seconds
    python -m benchmarks.serving noop | soak | neighbours | cycles      Octet alone
    python -m benchmarks.serving all                    everything, shortened to about twenty minutes

What is not the repository's lies in `$OCTET_BENCH_HOME`, or in a folder of the user's cache.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.serving import home
from benchmarks.serving.calls import BODIES
from benchmarks.serving.compare import CONCURRENCIES, compare
from benchmarks.serving.kill import kill
from benchmarks.serving.loading import cycles, neighbours
from benchmarks.serving.noop import noop
from benchmarks.serving.outcome import Result
from benchmarks.serving.overload import overload, rates
from benchmarks.serving.servers import Server
from benchmarks.serving.soak import soak
from benchmarks.serving.subject import Subject, subject
from benchmarks.serving.table import SERVERS

Experiment = Callable[[Subject, argparse.Namespace], Iterator[Result]]
_SHORT_PEERS = ("fastapi-queue", "litserve", "bentoml-raw", "mlserver-raw", "octet")
_SHORT_SOAK = 60_000
_KILLED = ("fastapi-queue", "litserve", "bentoml", "mlserver-worker", "ray", "octet")


def _servers(arguments: argparse.Namespace, *, default: tuple[str, ...] = ()) -> Mapping[str, Server]:
    names = arguments.servers or default or tuple(SERVERS)
    usable = {name: SERVERS[name] for name in names}
    for server in usable.values():
        if server.unusable():
            print(f"{server.title}: {server.unusable()}", file=sys.stderr)
    return usable


def _present(servers: Mapping[str, Server]) -> Mapping[str, Server]:
    return {name: server for name, server in servers.items() if not server.unusable()}


def _peers(thing: Subject, arguments: argparse.Namespace) -> Iterator[Result]:
    for body in arguments.bodies:
        yield compare(
            thing,
            _servers(arguments),
            body=body,
            repeats=arguments.repeats,
            seconds=arguments.seconds or 2,
            concurrencies=arguments.clients,
        )


def _rates(thing: Subject, arguments: argparse.Namespace) -> Iterator[Result]:
    yield rates(thing, _present(_servers(arguments, default=_SHORT_PEERS)), seconds=arguments.seconds or 4)


def _overload(thing: Subject, arguments: argparse.Namespace) -> Iterator[Result]:
    yield overload(thing, _present(_servers(arguments, default=_SHORT_PEERS)), seconds=arguments.seconds or 30)


def _kill(thing: Subject, arguments: argparse.Namespace) -> Iterator[Result]:
    yield kill(thing, _present(_servers(arguments, default=_KILLED)), seconds=arguments.seconds or 30)


def _noop(thing: Subject, arguments: argparse.Namespace) -> Iterator[Result]:
    yield noop(thing, seconds=arguments.seconds or 4)


def _soak(thing: Subject, arguments: argparse.Namespace) -> Iterator[Result]:
    yield soak(thing, requests=arguments.requests)


def _neighbours(thing: Subject, arguments: argparse.Namespace) -> Iterator[Result]:
    yield neighbours(thing, seconds=arguments.seconds or 8, repeats=arguments.repeats)


def _cycles(thing: Subject, arguments: argparse.Namespace) -> Iterator[Result]:
    yield cycles(thing, count=arguments.cycles)


def _all(thing: Subject, arguments: argparse.Namespace) -> Iterator[Result]:
    """Everything once, each part as long as it must be to say something."""
    yield compare(thing, _servers(arguments), body="float32", repeats=2, seconds=1.2)
    for body in BODIES[1:]:
        short = {name: SERVERS[name] for name in ("fastapi-queue", "mlserver-raw", "octet")}
        yield compare(thing, short, body=body, repeats=1, seconds=1.5, concurrencies=(1, 16))
    yield rates(thing, _present(_servers(arguments, default=("fastapi-queue", "octet"))), seconds=3)
    yield overload(thing, _present(_servers(arguments, default=("fastapi-queue", "octet"))), seconds=30)
    yield kill(thing, _present(_servers(arguments, default=_KILLED)), seconds=22)
    yield noop(thing, seconds=3)
    yield soak(thing, requests=min(arguments.requests, _SHORT_SOAK))
    yield neighbours(thing, seconds=6, repeats=3)
    yield cycles(thing, count=arguments.cycles)


EXPERIMENTS: dict[str, Experiment] = {
    "peers": _peers,
    "rates": _rates,
    "overload": _overload,
    "kill": _kill,
    "noop": _noop,
    "soak": _soak,
    "neighbours": _neighbours,
    "cycles": _cycles,
    "all": _all,
}


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "install"])
    parser.add_argument("environments", nargs="*", help=f"for install: of {', '.join(home.ENVIRONMENTS)}")
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), help="only these")
    parser.add_argument("--bodies", nargs="+", choices=BODIES, default=["float32"])
    parser.add_argument("--clients", nargs="+", type=int, default=list(CONCURRENCIES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="of one measured point")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of soak; `all` takes at most 60,000")
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--plots", type=Path, help="folder for the plots; without it, in the benchmark's own folder")
    return parser.parse_args()


def main() -> int:
    arguments = _read_arguments()
    if arguments.experiment == "install":
        failures = home.install(arguments.environments or home.ENVIRONMENTS)
        for environment, reason in failures.items():
            print(f"{environment} cannot be installed: {reason}")
        return 1 if failures else 0
    plots = arguments.plots or home.home() / "plots"
    results = home.home() / "results"
    for folder in (plots, results):
        folder.mkdir(parents=True, exist_ok=True)
    for result in EXPERIMENTS[arguments.experiment](subject(), arguments):
        print(f"\n{result.text}", flush=True)
        (plots / f"serving-{result.name}.svg").write_text(result.plot)
        (results / f"{result.name}-{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(result.numbers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
