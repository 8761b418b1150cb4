"""What a machine does that trains along with a worker on another one: waits for its orders, and follows them.

An order is a claim of whoever listens at the other end: it says what to train, never what that may take here.
"""

import json
import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch._C._distributed_c10d import TCPStore

from workers.limits import Limits
from workers.sandbox import environment

ORDER = "octet/order"
ORDER_SECONDS = 5.0
STAGE = "train"
MOST_MACHINES = 64
_RUN_CHARS = 32
_LOOK_SECONDS = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the other machines are to do.

    Attributes:
        run: a name of the run, never the same twice.
        stage: `train`, for no other is followed.
        scratch: the job's scratch folder.
        processes: on each machine.
        spec: the stage's record, as JSON.
    """

    run: str
    stage: str
    scratch: str
    processes: int
    machines: int
    spec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A machine that joins.

    Attributes:
        endpoint: `host:port` of the worker.
        node: this machine's number, from 1; the worker is 0.
        below: the worker's scratch folder, shared at the same path.
        limits: what a run may take of this machine.
    """

    endpoint: str
    node: int
    below: Path
    limits: Limits


def publish(order: Order, store: TCPStore) -> None:
    """Tell the other machines what to do, for as long as the store is kept."""
    store.set(ORDER, json.dumps(asdict(order)))


def join(member: Member) -> None:
    """Follow order after order, for ever."""
    seen = ""
    while True:
        order = _order(member.endpoint)
        if order is None or order.run == seen:
            time.sleep(_LOOK_SECONDS)
            continue
        seen = order.run
        follow(order, member)


def follow(order: Order, member: Member) -> bool:
    """Run this machine's part of an order; tell whether it was done well. What cannot be followed is logged."""
    if (fault := _fault(order, member)) is not None:
        log.error("an order of %s was refused: %s", member.endpoint, fault)
        return False
    log.info("run %s: %d of %d processes", order.run, order.processes, order.processes * order.machines)
    code = _carry_out(order, member)
    log.info("run %s: %s", order.run, "done" if code == 0 else f"ended with {code}")
    return code == 0


def _order(endpoint: str) -> Order | None:
    host, port = endpoint.rsplit(":", 1)
    try:
        store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=ORDER_SECONDS))
        return TypeAdapter(Order).validate_json(store.get(ORDER))
    except RuntimeError:
        return None  # nobody trains there, or it is no store
    except ValidationError:
        log.warning("%s gave an order that this release cannot read: run the same one on all machines", endpoint)
        return None


def _fault(order: Order, member: Member) -> str | None:
    """Say why an order cannot be followed here."""
    cores = len(os.sched_getaffinity(0))
    if order.stage != STAGE:
        return f"it asks for the stage {order.stage[:_RUN_CHARS]!r}, and machines that join only train"
    if not (order.run.isascii() and order.run.isalnum() and len(order.run) <= _RUN_CHARS):
        return f"its run has no name of at most {_RUN_CHARS} letters and digits"
    if not 1 <= order.processes <= cores:
        return f"it asks for {order.processes:.3g} processes, and this machine has {cores} cores: set processes lower"
    if not member.node < order.machines <= MOST_MACHINES:
        return (
            f"it is for {order.machines:.3g} machines, and this one is number {member.node}, counted from 0: set "
            "--rank, or OCTET_TRAINING_NODES on the worker"
        )
    if not _is_below(order.scratch, member.below):
        return (
            f"there is no folder of its name below {member.below} here: share the worker's scratch folder at its path"
        )
    return None


def _is_below(scratch: str, below: Path) -> bool:
    try:
        folder = Path(scratch).resolve()
        return below.resolve() in folder.parents and folder.is_dir()
    except (OSError, ValueError, RuntimeError):
        return False  # no path at all, or a circle of links


def _carry_out(order: Order, member: Member) -> int:
    """Run this machine's processes, within its own limits; return the launcher's exit code."""
    scratch, limits = Path(order.scratch).resolve(), member.limits
    channel = os.open(os.devnull, os.O_WRONLY)  # the worker's own launcher tells how far it is
    shares = (limits.memory_bytes, limits.scratch_bytes, limits.seconds)
    place = (member.endpoint, order.machines, order.run, member.node)
    arguments = (order.stage, os.getpid(), channel, *shares, order.processes, *place)
    try:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "workers.training.launch", *map(str, arguments)],
            cwd=scratch,
            env=environment(scratch, allow_unsandboxed=False),
            stdin=subprocess.PIPE,
            pass_fds=(channel,),
            start_new_session=True,
        )
    finally:
        os.close(channel)
    return _watched(launcher, order.spec.encode(errors="replace"), limits, scratch)


def _watched(launcher: "subprocess.Popen[bytes]", spec: bytes, limits: Limits, scratch: Path) -> int:
    deadline = time.monotonic() + limits.seconds
    with launcher:
        assert launcher.stdin is not None  # noqa: S101 - for the type checker
        with suppress(BrokenPipeError):  # it died before it read; its exit code tells
            launcher.stdin.write(spec)
            launcher.stdin.close()
        while launcher.poll() is None:
            broken = limits.broken_by(launcher.pid, scratch)
            if broken is None and time.monotonic() > deadline:
                broken = limits.out_of_time()
            if broken is not None:
                log.error("%s", broken.message)
                launcher.kill()
            time.sleep(_LOOK_SECONDS)
    return launcher.returncode
