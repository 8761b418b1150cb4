"""`python -m workers.runners`: become a runner that lives and dies with the gateway that started it."""

import argparse
import contextlib
import logging
import signal
import sys
from pathlib import Path

from workers.confinement import confine_runner
from workers.lifeline import die_with
from workers.runners.connection import Connection

log = logging.getLogger(__name__)


def main() -> None:
    """Read the arguments, tie this process to its gateway, and serve."""
    parser = argparse.ArgumentParser(prog="python -m workers.runners")
    parser.add_argument("--socket", type=int, required=True, help="descriptor of this end of the socket pair")
    parser.add_argument("--gateway", type=int, required=True, help="process id of the gateway")
    parser.add_argument("--artifact", type=Path, required=True, help="the one file this runner may read")
    parser.add_argument("--memory", type=int, required=True, help="bytes of memory it may take")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    die_with(arguments.gateway)
    _let_the_gateway_stop_us()
    _be_first_to_go_when_memory_is_short()
    _confine(arguments.artifact, memory_bytes=arguments.memory)

    from workers.runners.service import serve  # noqa: PLC0415  (it imports the engine: be tied and confined first)

    serve(Connection(arguments.socket))


def _let_the_gateway_stop_us() -> None:
    """Ignore what a terminal or a service manager sends to all: the gateway drains first, then says stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _confine(artifact: Path, *, memory_bytes: int) -> None:
    missing = confine_runner(artifact, memory_bytes=memory_bytes)
    if missing:
        log.warning("This machine cannot confine runners completely: it lacks %s.", ", ".join(missing))


def _be_first_to_go_when_memory_is_short() -> None:
    with contextlib.suppress(OSError):  # where /proc is read-only the kernel chooses by size, which is nearly as good
        Path("/proc/self/oom_score_adj").write_text("500")


if __name__ == "__main__":
    main()
