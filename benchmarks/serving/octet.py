"""Octet as a user starts it, and the few things that a benchmark asks of it beside predictions."""

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import httpx
import psutil

from app import __version__
from app.client import Octet
from benchmarks.serving import calls
from benchmarks.serving.calls import BODIES, Body
from benchmarks.serving.load import Call, Outcome
from benchmarks.serving.servers import Form, Running, ServerDidNotStart, ask
from benchmarks.serving.subject import MODEL, Subject
from examples.service import OctetDidNotStart, embedded_octet

RUNNER, GATEWAY = "workers.runners", "app.launcher gateway"
_FIRST_ANSWER_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_INFER = f"/v2/models/{MODEL}/infer"
_PREDICT = f"/v1/models/{MODEL}/predict"

BINARY, NPY, JPEG, JSON = "/v2, binary", "/predict, .npy", "/predict, JPEG", "/v2, JSON"
DOORS: Mapping[Body, Mapping[str, Form]] = {
    "float32": {
        BINARY: Form(
            path=_INFER, bodies=partial(calls.protocol_binary, body="float32"), read=calls.protocol_binary_logits
        ),
        NPY: Form(path=_PREDICT, bodies=calls.npy, read=calls.npy_logits),
    },
    "uint8": {
        BINARY: Form(
            path=_INFER, bodies=partial(calls.protocol_binary, body="uint8"), read=calls.protocol_binary_logits
        ),
    },
    "jpeg": {JPEG: Form(path=_PREDICT, bodies=calls.jpegs, read=calls.npy_logits)},
    "json": {JSON: Form(path=_INFER, bodies=calls.protocol_json, read=calls.protocol_json_logits)},
}
"""Ways in, by body; the first that gives a right answer is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedOctet:
    """`octet serve` in one configuration for all loads: it has no number of streams to be told.

    Attributes:
        settings: environment variables beside the defaults.
    """

    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"Octet ({__version__})"

    @property
    def streams(self) -> Sequence[int]:
        return (0,)

    @property
    def takes(self) -> Collection[Body]:
        return BODIES

    def unusable(self) -> str:
        """Return nothing: it runs where the benchmark does."""
        return ""

    @contextmanager
    def running(self, subject: Subject, *, body: Body, streams: int = 0) -> Iterator[Running]:
        """Run it for as long as the block, as `Server` says."""
        del streams
        began = time.monotonic()
        with self.started(subject) as (octet, root):
            door, wanted = open_door(port_of(octet), subject, body)
            cold_seconds = time.monotonic() - began
            yield Running(port=port_of(octet), root=root.pid, cold_seconds=cold_seconds, calls=wanted, note=door)

    @contextmanager
    def started(self, subject: Subject) -> Iterator[tuple[Octet, psutil.Process]]:
        """Run it for as long as the block; yield a client, and the process that all others descend from."""
        before = {child.pid for child in psutil.Process().children()}
        kept = dict(os.environ)
        os.environ |= {"OCTET_LOG_LEVEL": "warning", **self.settings}
        try:
            with embedded_octet(subject.folder) as octet:
                (root,) = [child for child in psutil.Process().children() if child.pid not in before]
                yield octet, root
        except OctetDidNotStart as error:
            raise ServerDidNotStart(str(error)) from error
        finally:
            os.environ.clear()
            os.environ.update(kept)


def port_of(octet: Octet) -> int:
    """Return the port that a client of this machine's Octet speaks to."""
    return int(octet.base_url.rsplit(":", 1)[1])


def open_door(port: int, subject: Subject, body: Body) -> tuple[str, list[Call]]:
    """Return the name of the first way in that gives a right answer, and its requests.

    Raises:
        ServerDidNotStart: none does within a minute.
    """
    doors = {door: form.calls(subject, body) for door, form in DOORS[body].items()}
    last: dict[str, str] = {}
    deadline = time.monotonic() + _FIRST_ANSWER_SECONDS
    while time.monotonic() < deadline:
        for door, wanted in doors.items():
            outcome = ask(port, wanted[0])
            last[door] = outcome.name.lower()
            if outcome is Outcome.RIGHT:
                return door, wanted
        if all(said in {"failed", "wrong"} for said in last.values()):
            break
        time.sleep(_PAUSE_SECONDS)
    raise ServerDidNotStart(f"Octet gave no right answer to a {body} body: {last}.")


def load(octet: Octet, model: str, *, instances: int) -> str:
    """Load a model through the protocol's repository; return why it was refused, or nothing."""
    answer = httpx.post(
        f"{octet.base_url}/v2/repository/models/{model}/load",
        json={"parameters": {"instances": instances}},
        timeout=_FIRST_ANSWER_SECONDS,
        trust_env=False,
    )
    return "" if answer.is_success else f"{answer.status_code}: {answer.text[:120]}"
