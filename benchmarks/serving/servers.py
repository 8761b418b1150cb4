"""A server under test: how it is started, asked and stopped. Which there are stands in `table.py`."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.serving import calls
from benchmarks.serving.calls import PIXELS, Body, Read
from benchmarks.serving.home import REPOSITORY, missing, python_of
from benchmarks.serving.load import Call, Done, Outcome, opened
from benchmarks.serving.subject import Subject
from examples.service import free_port

START_SECONDS = 90.0
_STOP_SECONDS = 4.0  # nothing is lost by force: several were seen to hang in the engine's destructors
_PAUSE_SECONDS = 0.02
_PACKAGE = "benchmarks.serving.peers"
_QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OTEL_SDK_DISABLED": "true",
}

Bodies = Sequence[tuple[Mapping[str, str], bytes]]


class ServerDidNotStart(Exception):
    """A server ended, or gave no right answer in time; the message has its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers.

    Attributes:
        root: process whose tree is the server.
        cold_seconds: from its start to its first right answer.
        calls: one request for every row.
        note: what a table should say of it.
    """

    port: int
    root: int
    cold_seconds: float
    calls: Sequence[Call]
    note: str = ""


class Server(Protocol):
    """What a benchmark needs of a server."""

    @property
    def title(self) -> str:
        """Name and version, for a table."""

    @property
    def streams(self) -> Sequence[int]:
        """What it is tried with, each in a run of its own; 0 if it chooses for itself."""

    @property
    def takes(self) -> Collection[Body]:
        """Bodies that it takes."""

    def unusable(self) -> str:
        """Return why it cannot run here, or nothing."""

    def running(self, subject: Subject, *, body: Body, streams: int) -> AbstractContextManager[Running]:
        """Run it for as long as the block.

        Raises:
            ServerDidNotStart: no right answer came in time.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a server takes one kind of body."""

    path: str
    bodies: Callable[[Subject], Bodies]
    read: Read

    def calls(self, subject: Subject, body: Body) -> list[Call]:
        """Return one call for every row."""
        return calls.calls(self.path, self.bodies(subject), subject=subject, body=body, read=self.read)


def plain(path: str, *bodies: Body) -> dict[Body, Form]:
    def of(body: Body) -> Form:
        return Form(path=path, bodies=lambda subject: calls.plain(subject, body), read=calls.raw_logits)

    return {body: of(body) for body in bodies}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server in a virtual environment of its own.

    Attributes:
        environment: file in `requirements/`, named for the package whose version the table shows.
        module: file in `peers/`.
        command: after the interpreter, where it is not that module.
        streams: of the engine, each tried in a run of its own.
    """

    name: str
    environment: str
    forms: Mapping[Body, Form]
    module: str = ""
    command: Sequence[str] = ()
    streams: Sequence[int] = (1, 2)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        found = distributions(path=[str(folder) for folder in _site_packages(self.environment)])
        versions = {one.metadata["Name"].lower(): one.version for one in found}
        return f"{self.name} ({self.environment} {versions.get(self.environment, 'not installed')})"

    def unusable(self) -> str:
        """Return why it cannot run here, or nothing."""
        return missing(self.environment)

    @property
    def takes(self) -> Collection[Body]:
        return self.forms.keys()

    @contextmanager
    def running(self, subject: Subject, *, body: Body, streams: int) -> Iterator[Running]:
        """Run it for as long as the block.

        Raises:
            ServerDidNotStart: no right answer came in time.
        """
        port = free_port()
        command = [word.format(port=port) for word in self.command or ("-m", f"{_PACKAGE}.{self.module}")]
        settings = {
            "BENCH_ARTIFACT": str(subject.artifact),
            "BENCH_PORT": str(port),
            "BENCH_STREAMS": str(streams),
            "BENCH_GRAPH": "pixels" if body in PIXELS else "floats",
            "PYTHONPATH": str(REPOSITORY),
            "PATH": f"{python_of(self.environment).parent}:{os.environ['PATH']}",
        }
        with tempfile.TemporaryDirectory(prefix="octet-bench-serving-", ignore_cleanup_errors=True) as scratch:
            variables = {**os.environ, **_QUIET, **settings, **self.variables, "RAY_TMPDIR": scratch}
            log = Path(scratch) / "log"
            with log.open("wb") as output:
                began = time.monotonic()
                process = subprocess.Popen(
                    [str(python_of(self.environment)), *command],
                    env=variables,
                    cwd=scratch,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                wanted = self.forms[body].calls(subject, body)
                wait_until_right(port, wanted[0], process=process, log=log)
                cold_seconds = time.monotonic() - began
                yield Running(port=port, root=process.pid, cold_seconds=cold_seconds, calls=wanted)
            finally:
                stop(process)


def wait_until_right(port: int, wanted: Call, *, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Ask until the first right answer.

    Raises:
        ServerDidNotStart: it ended, or none came in time.
    """
    last = "nothing"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        outcome = ask(port, wanted)
        if outcome is Outcome.RIGHT:
            return
        last = outcome.name.lower()
        time.sleep(_PAUSE_SECONDS)
    words = log.read_text(errors="replace")[-1500:] if log.is_file() else ""
    raise ServerDidNotStart(f"No right answer (the last: {last}; exit status {process.poll()}). It said:\n{words}")


def ask(port: int, call: Call) -> Outcome:
    """Send one request and return what became of it."""
    done: list[Done] = []
    load = opened(port, [call], connections=1, done=done)
    try:
        load.closed_loop(requests=1)
    finally:
        load.close()
    return done[-1].outcome if done else Outcome.BROKEN


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a server and all that it started."""
    tree = [process, *_descendants(process.pid)]
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    rest = [one for one in tree if isinstance(one, psutil.Process)]
    _, alive = psutil.wait_procs(rest, timeout=3)
    for one in alive:
        one.kill()
    psutil.wait_procs(alive, timeout=3)


def _descendants(root: int) -> list[psutil.Process]:
    try:
        return psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _site_packages(environment: str) -> list[Path]:
    return list(python_of(environment).parents[1].glob("lib/python*/site-packages"))
