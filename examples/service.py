"""An Octet of one's own for as long as a block: the launcher on a free port, its data in a folder that goes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.client import Octet
from app.domain.errors import OctetError

START_SECONDS = 60


class OctetDidNotStart(Exception):
    """The service ended, or did not become ready in time; the message has its last words."""


@contextmanager
def embedded_octet(folder: Path) -> Iterator[Octet]:
    """Start Octet with its data in `folder`, yield a client once it is ready, and stop it in order at the end.

    Raises:
        OctetDidNotStart: it ended, or was not ready within a minute.
    """
    port = free_port()
    environment = {**os.environ, "OCTET_PORT": str(port), "OCTET_DATA_DIR": str(folder / "octet-data")}
    log = folder / "octet.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.launcher", "serve"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops Octet in order
        )
    try:
        with Octet(f"http://127.0.0.1:{port}") as octet:
            _wait_ready(octet, process, log)
            yield octet
    finally:
        process.terminate()
        process.wait()


def _wait_ready(octet: Octet, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(octet):
            return
        time.sleep(0.1)
    last_words = log.read_text(errors="replace")[-2000:]
    raise OctetDidNotStart(f"Octet was not ready within {START_SECONDS} s. It said:\n{last_words}")


def _answers(octet: Octet) -> bool:
    try:
        return octet.ready().status == "ready"
    except OctetError:
        return False  # nobody listens yet


def free_port() -> int:
    """Return a port of the loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
