"""Several gateway processes behind one port, as uvicorn keeps them, with what that lacks: a port that closes when they
begin to drain, and no process that outlives its parent.
"""

import multiprocessing
import signal
from typing import Any

from uvicorn import Config
from uvicorn.supervisors import Multiprocess

from app.supervision import die_with_parent


def run_processes(application: str, **options: Any) -> None:  # noqa: ANN401 - as uvicorn has them
    """Run a factory's application until told to stop; the options are `uvicorn.run`'s."""
    config = Config(application, factory=True, **options)
    _Gateways(config, sockets=[config.bind_socket()]).run()


def end_with_parent() -> None:
    """Drain this process when its parent is killed: nobody else would ever stop it, and it would keep the port."""
    if multiprocessing.parent_process() is not None:
        die_with_parent(signal.SIGTERM)()


class _Gateways(Multiprocess):
    def terminate_all(self) -> None:
        """Close the port, and tell every process to drain. With it open, clients would wait in it for nobody."""
        for listener in self.sockets:
            listener.close()
        super().terminate_all()
