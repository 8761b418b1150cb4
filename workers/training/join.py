"""`python -m workers.training.join host:port --scratch folder`: trains along with a worker on another machine.

Waits for that worker's next training, runs its part of the processes here, and waits again. The folder is the worker's
scratch folder, shared between the machines at the same path. Knows neither store nor queue.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistError

from workers.limits import Limits
from workers.sandbox import environment

ORDER = "octet/order"
ORDER_SECONDS = 5.0
_LOOK_SECONDS = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the other machines are to do.

    Attributes:
        run: a name of the run, never the same twice.
        scratch: the job's scratch folder.
        processes: on each machine.
        spec: the stage's record, as JSON.
    """

    run: str
    stage: str
    scratch: str
    memory_bytes: int
    scratch_bytes: int
    seconds: float
    processes: int
    machines: int
    spec: str


def publish(order: Order, endpoint: str) -> TCPStore:
    """Tell the other machines what to do, for as long as the returned store is kept."""
    host, port = endpoint.rsplit(":", 1)
    store = TCPStore(host, int(port), is_master=True, wait_for_workers=False, multi_tenant=True)
    store.set(ORDER, json.dumps(asdict(order)))
    return store


def main(arguments: list[str]) -> None:
    """Join run after run, for ever."""
    parser = argparse.ArgumentParser(prog="python -m workers.training.join", description=__doc__)
    parser.add_argument("rendezvous", help="host:port of the worker: its OCTET_TRAINING_RENDEZVOUS")
    parser.add_argument("--scratch", type=Path, required=True, help="the worker's scratch folder, at the same path")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    seen = ""
    while True:
        order = _order(given.rendezvous)
        if order is None or order.run == seen:
            time.sleep(_LOOK_SECONDS)
            continue
        seen = order.run
        _follow(order, endpoint=given.rendezvous, below=given.scratch)


def _order(endpoint: str) -> Order | None:
    host, port = endpoint.rsplit(":", 1)
    try:
        store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=ORDER_SECONDS))
        return TypeAdapter(Order).validate_json(store.get(ORDER))
    except DistError:
        return None  # nobody trains
    except ValidationError:
        log.warning("%s gave an order that this release cannot read: run the same one on all machines", endpoint)
        return None


def _follow(order: Order, *, endpoint: str, below: Path) -> None:
    scratch = Path(order.scratch).resolve()
    if not scratch.is_relative_to(below.resolve()) or not scratch.is_dir():
        log.error("there is no folder %s below %s here: share the worker's scratch folder at its path", scratch, below)
        return
    log.info("run %s: %d of %d processes", order.run, order.processes, order.processes * order.machines)
    code = _carry_out(order, endpoint=endpoint, scratch=scratch)
    log.info("run %s: %s", order.run, "done" if code == 0 else f"ended with {code}")


def _carry_out(order: Order, *, endpoint: str, scratch: Path) -> int:
    """Run this machine's processes, within the worker's limits; return the launcher's exit code."""
    limits = Limits(memory_bytes=order.memory_bytes, scratch_bytes=order.scratch_bytes, seconds=order.seconds)
    shares = (order.memory_bytes, order.scratch_bytes, order.seconds)
    channel = os.open(os.devnull, os.O_WRONLY)  # the worker's own launcher tells how far it is
    arguments = (order.stage, os.getpid(), channel, *shares, order.processes, endpoint, order.machines, order.run)
    command = [sys.executable, "-m", "workers.training.launch", *map(str, arguments), "member"]
    try:
        launcher = subprocess.Popen(
            command,
            cwd=scratch,
            env=environment(scratch, allow_unsandboxed=False),
            stdin=subprocess.PIPE,
            pass_fds=(channel,),
            start_new_session=True,
        )
    finally:
        os.close(channel)
    return _watched(launcher, order.spec.encode(), limits, scratch)


def _watched(launcher: "subprocess.Popen[bytes]", spec: bytes, limits: Limits, scratch: Path) -> int:
    with launcher:
        assert launcher.stdin is not None  # noqa: S101 - for the type checker
        launcher.stdin.write(spec)
        launcher.stdin.close()
        while launcher.poll() is None:
            if (broken := limits.broken_by(launcher.pid, scratch)) is not None:
                log.error("%s", broken.message)
                launcher.kill()
            time.sleep(_LOOK_SECONDS)
    return launcher.returncode


if __name__ == "__main__":
    main(sys.argv[1:])
