"""`python -m workers.join host:port --rank N --scratch folder`: trains along with a worker on another machine.

Waits for that worker's next training, runs its part of the processes here, and waits again. The folder is the worker's
scratch folder, shared between the machines at the same path. Knows neither store nor queue; what a training may take
of this machine, its own settings say.
"""

import argparse
import logging
import sys
from pathlib import Path

from app.settings import SettingsInvalid, read_settings
from workers.limits import Limits
from workers.training.join import MOST_MACHINES, Member, join


def main(arguments: list[str]) -> int:
    """Join run after run, for ever; return the exit status where that cannot begin."""
    parser = argparse.ArgumentParser(prog="python -m workers.join", description=__doc__)
    parser.add_argument("rendezvous", help="host:port of the worker: its OCTET_TRAINING_RENDEZVOUS")
    parser.add_argument("--scratch", type=Path, required=True, help="the worker's scratch folder, at the same path")
    parser.add_argument(
        *("--rank", "-r"),
        type=int,
        choices=range(1, MOST_MACHINES),
        metavar="N",
        default=1,
        help="this machine's number, each once: 1 for the first that joins, 2 for the next",
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        settings = read_settings()
    except SettingsInvalid as error:
        sys.stderr.write(f"octet: {error}\n")
        return 2
    limits = Limits(
        memory_bytes=settings.job_memory_bytes,
        scratch_bytes=settings.job_scratch_bytes,
        seconds=settings.job_timeout_seconds,
    )
    join(Member(endpoint=given.rendezvous, node=given.rank, below=given.scratch, limits=limits))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
