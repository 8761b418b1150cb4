"""`python -m workers.training.launch`: runs a stage in several processes, by PyTorch's own `torchrun`.

Takes the place of `workers.stage_child` and the same arguments, and after them: processes on this machine, and for
several machines `host:port` of the rendezvous, how many machines, a name for the run, this machine's number. It opens
nothing foreign, but listens: so it confines itself, and every process it starts (`workers.training.rank`) even more.
One that dies is started again, with all others, and training goes on from its last checkpoint.
"""

import fcntl
import os
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from app.domain.errors import DoesNotFit, JobFailure, SandboxUnavailable
from workers import confinement, lifeline, own_network
from workers.stage_child import CHANNEL, keep_only_channel, send
from workers.training.rank import OVER, TOLD

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

MOST_RESTARTS = 3
JOIN_SECONDS = 300
LOOPBACK = "127.0.0.1"

_RELAY_SECONDS = 0.1
_SIOCGIFADDR = 0x8915
_INTERFACE = "16sH14s"
_LISTENING = 1024


class Place(NamedTuple):
    """Where the processes of all machines meet, as `torchrun` wants to know it; port 0 is any free one."""

    address: str
    port: int
    machines: int
    run: str
    node: int


class Work(NamedTuple):
    """What every process is told, as the arguments say it."""

    stage: str
    memory: str
    disk: str
    seconds: str


def main(arguments: list[str]) -> int:
    """Run one stage; 0 if its result is written, 1 if a failure was reported, 2 if the processes kept dying."""
    stage, parent, channel, memory, disk, seconds, processes, *elsewhere = arguments
    place = _place(*elsewhere) if elsewhere else Place(LOOPBACK, 0, 1, "octet", 0)
    shares_network = place.machines == 1 and not own_network.available()
    if place.machines == 1 and not shares_network:
        own_network.enter()
    lifeline.die_with(int(parent))
    keep_only_channel(int(channel))
    _keep_input()
    if (failure := _lack(shares_network=shares_network)) is not None:
        return _refuse(failure)
    missing = confinement.missing_protections()
    confinement.confine_launcher(Path.cwd())
    folder = Path.cwd() / "tmp"
    (folder / TOLD).touch()
    work = Work(stage, memory, disk, seconds)
    with _Relay(folder / TOLD, speaks=place.node == 0):
        done = _launched(place, work, processes=int(processes), missing=missing)
    if (folder / OVER).exists():
        return 1
    return 0 if done else 2


def _place(endpoint: str, machines: str, run: str, node: str) -> Place:
    """Return where to meet, by address: the processes have no files to look a name up in."""
    host, port = endpoint.rsplit(":", 1)
    return Place(socket.gethostbyname(host), int(port), int(machines), run, int(node))


def _keep_input() -> None:
    """Put the spec into a file without a name: all processes read it, however often they are started."""
    kept = os.memfd_create("spec")
    with os.fdopen(os.dup(kept), "wb") as file:
        file.write(sys.stdin.buffer.read())
    os.dup2(kept, 0)
    os.close(kept)


def _lack(*, shares_network: bool) -> JobFailure | None:
    """Say what this machine lacks to train in several processes."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return DoesNotFit(
            "This machine's kernel does not say which processes another has started (CONFIG_PROC_CHILDREN), so their "
            "memory cannot be watched: set the recipe's processes to 1."
        )
    if shares_network and os.environ.get(confinement.ALLOW_UNSANDBOXED) != "1":
        return SandboxUnavailable(
            "Training in several processes needs a network of their own, and this machine gives none (unshare is "
            "refused): set the recipe's processes to 1, let the worker make user and network namespaces, or set "
            f"{confinement.ALLOW_UNSANDBOXED}=true if they may reach what the worker reaches."
        )
    return None


def _launched(place: Place, work: Work, *, processes: int, missing: tuple[str, ...]) -> bool:
    """Start the processes and wait for their end; tell whether it was a good one."""
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # it warns that a loopback has no name
    from torch.distributed import DistError  # noqa: PLC0415 - it is large
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: PLC0415

    address = _own_address(place.address)
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    os.environ["GLOO_SOCKET_IFNAME"] = _interface(address)
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"  # ranks follow from the machines' numbers, not from the store
    store = _listening(address, place.port) if place.node == 0 else None
    # Never "c10d": its agents unpickle what lies in the store, and whoever reaches the store writes to it.
    config = LaunchConfig(
        min_nodes=place.machines,
        max_nodes=place.machines,
        nproc_per_node=processes,
        run_id=place.run,
        rdzv_backend="static",
        rdzv_endpoint=f"{place.address}:{store.port if store else place.port}",
        rdzv_configs={"rank": place.node, "timeout": JOIN_SECONDS},
        max_restarts=MOST_RESTARTS,
        local_addr=address,
        shutdown_timeout=5,
    )
    if store is not None and place.machines > 1:
        _publish(store, place, work, processes=processes)
    try:
        told = (str(os.getpid()), ",".join(missing), *work)
        elastic_launch(config, sys.executable)("-m", "workers.training.rank", *told)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        how = first.signal_name() if first.exitcode < 0 else f"exit code {first.exitcode}"
        words = f"process {rank} of {place.machines * processes} ended with {how} after {MOST_RESTARTS} new starts"
        sys.stdout.write(f"{words}\n")
        return False
    except DistError:
        if place.machines == 1:
            raise
        _refuse(
            DoesNotFit(
                f"Not all of the {place.machines} machines met at {place.address}:{place.port} within {JOIN_SECONDS} "
                "seconds: run python -m workers.join on the others, or unset OCTET_TRAINING_NODES."
            )
        )
        return False
    finally:
        del store  # until now the others could read it
    return True


def _listening(address: str, port: int) -> "TCPStore":
    """Open the store where the processes find each other, at one address; torch by itself listens at all."""
    from torch._C._distributed_c10d import TCPStore  # noqa: PLC0415 - it is large

    server = socket.create_server((address, port), backlog=_LISTENING)
    port = server.getsockname()[1]
    # What `torchrun` asks for at the same port is this one then.
    return TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=server.detach(),
    )


def _publish(store: "TCPStore", place: Place, work: Work, *, processes: int) -> None:
    from workers.training.join import Order, publish  # noqa: PLC0415 - it imports torch

    order = Order(
        run=place.run,
        stage=work.stage,
        scratch=str(Path.cwd()),
        processes=processes,
        machines=place.machines,
        spec=Path("/proc/self/fd/0").read_text(),
    )
    publish(order, store)


def _refuse(failure: JobFailure) -> int:
    send({"code": failure.code, "message": failure.message})
    return 1


def _own_address(other: str) -> str:
    """Return the address of this machine that others on the way to that address see."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 1))  # sends nothing
        address: str = probe.getsockname()[0]
    return address


def _interface(address: str) -> str:
    """Name the network interface that has an address: gloo would guess from the machine's name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack(_INTERFACE, name.encode(), 0, b""))
            except OSError:
                continue  # it has no address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return "lo"


class _Relay:
    """Passes on what rank 0 writes to a file, on whichever machine it runs: ranks are numbered by the rendezvous."""

    def __init__(self, told: Path, *, speaks: bool) -> None:
        self._file = told.open("rb", buffering=0)
        self._speaks = speaks
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while self._speaks and not ended:
            ended = self._done.wait(_RELAY_SECONDS)
            while said := self._file.read(2**16):
                os.write(CHANNEL, said)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
