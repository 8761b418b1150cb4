"""`python -m workers.training.rank`: one of the processes that `workers.training.launch` starts for a stage.

Confines itself like `workers.stage_child`, but for the sockets it needs to talk to the others.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

from workers import confinement, lifeline
from workers.stage_child import CHANNEL, RESULT, carry_out, close_input, failure_of, keep_only_channel, send

TOLD = "told"
"""In the scratch folder's `tmp`: what the processes have to say, for the launcher to pass on."""

OVER = "over"
"""Beside it when a failure was reported: who is started again then has nothing to do."""


def main(arguments: list[str]) -> int:
    """Run one stage; 0 if it is done, 1 if a failure was reported, 2 if something unexpected happened."""
    launcher, missing, stage, memory, disk, seconds = arguments
    lifeline.die_with(int(launcher))
    scratch = Path.cwd()
    folder = scratch / "tmp"
    if (folder / OVER).exists():
        return 0
    first = os.environ["RANK"] == "0"
    keep_only_channel(os.open(folder / TOLD if first else os.devnull, os.O_WRONLY | os.O_APPEND))
    spec = Path("/proc/self/fd/0").read_bytes()  # opened anew: the others read the same file
    close_input()
    if confinement.missing_protections() != tuple(filter(None, missing.split(","))):
        sys.stdout.write("this process found other protections than the one that started it\n")
        return 2
    confinement.confine_rank(scratch, memory_bytes=int(memory), scratch_bytes=int(disk), seconds=float(seconds))
    try:
        result = carry_out(stage, spec, scratch)
        if first:
            (scratch / RESULT).write_bytes(result)
    except Exception as error:  # noqa: BLE001 - the job's child: the boundary for whatever a stage may raise
        # The others fail for want of this one, and the launcher would end it for them before it has said why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        traceback.print_exc()
        return _report(stage, error, folder)
    return 0


def _report(stage: str, error: Exception, folder: Path) -> int:
    failure = failure_of(stage, error)
    if failure is None:
        return 2
    os.dup2(os.open(folder / TOLD, os.O_WRONLY | os.O_APPEND), CHANNEL)
    send({"code": failure.code, "message": failure.message})
    (folder / OVER).touch()
    return 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # at once: threads of a crew that was left in the lurch may wait for it for ever
