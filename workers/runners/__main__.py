"""`python -m workers.runners`: become a runner that lives and dies with the gateway that started it."""

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

from workers.runners.connection import Connection

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read the arguments, tie this process to its gateway, and serve."""
    parser = argparse.ArgumentParser(prog="python -m workers.runners")
    parser.add_argument("--socket", type=int, required=True, help="descriptor of this end of the socket pair")
    parser.add_argument("--gateway", type=int, required=True, help="process id of the gateway")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    _die_with(arguments.gateway)
    _let_the_gateway_stop_us()
    _be_first_to_go_when_memory_is_short()

    from workers.runners.service import serve  # noqa: PLC0415  (the engine is slow to import: be tied first)

    serve(Connection(arguments.socket))


def _die_with(gateway: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != gateway:  # it died before the line above
        sys.exit(1)


def _let_the_gateway_stop_us() -> None:
    """Ignore what a terminal or a service manager sends to all: the gateway drains first, then says stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _be_first_to_go_when_memory_is_short() -> None:
    with contextlib.suppress(OSError):  # where /proc is read-only the kernel chooses by size, which is nearly as good
        Path("/proc/self/oom_score_adj").write_text("500")


if __name__ == "__main__":
    main()
