"""`python -m workers.training.launch`: runs a stage in several processes, by PyTorch's own `torchrun`.

Takes the place of `workers.stage_child` and the same arguments, and after them: processes on this machine, and for
several machines `host:port` of the rendezvous, how many machines, a name for the run. It opens nothing foreign itself;
every process it starts (`workers.training.rank`) confines itself. One that dies is started again, with all others, and
training goes on from its last checkpoint.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import NamedTuple, Self

from app.domain.errors import DoesNotFit
from workers import confinement, lifeline
from workers.stage_child import CHANNEL, keep_only_channel, send
from workers.training.rank import OVER, TOLD

MOST_RESTARTS = 3
JOIN_SECONDS = 300
LOOPBACK = "127.0.0.1"

_RELAY_SECONDS = 0.1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _SIOCGIFADDR, _IFF_UP = 0x8914, 0x8915, 1
_INTERFACE = "16sH14s"


class Place(NamedTuple):
    """Where the processes of all machines meet, as `torchrun` wants to know it."""

    endpoint: str
    machines: int
    run: str
    host: bool


class Work(NamedTuple):
    """What every process is told, as the arguments say it."""

    stage: str
    memory: str
    disk: str
    seconds: str


def main(arguments: list[str]) -> int:
    """Run one stage; 0 if its result is written, 1 if a failure was reported, 2 if the processes kept dying."""
    stage, parent, channel, memory, disk, seconds, processes, *elsewhere = arguments
    place = _place(*elsewhere) if elsewhere else Place(f"{LOOPBACK}:0", 1, "octet", host=True)
    if place.machines == 1:
        leave_the_network()
    lifeline.die_with(int(parent))
    keep_only_channel(int(channel))
    _keep_input()
    confinement.give_up_privileges()
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return _refuse(
            "This machine's kernel does not say which processes another has started (CONFIG_PROC_CHILDREN), so their "
            "memory cannot be watched: set the recipe's processes to 1."
        )
    folder = Path.cwd() / "tmp"
    (folder / TOLD).touch()
    work = Work(stage, memory, disk, seconds)
    with _Relay(folder / TOLD, speaks=place.host):
        done = _launched(place, work, processes=int(processes))
    if (folder / OVER).exists():
        return 1
    return 0 if done else 2


def _place(endpoint: str, machines: str, run: str, role: str) -> Place:
    return Place(endpoint, int(machines), run, host=role == "host")


def leave_the_network() -> None:
    """Move this process to a network of its own that has nothing but a loopback, where the kernel allows it.

    To be called before there are threads.

    Raises:
        OSError: the kernel gave a network, and then no loopback.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNET) != 0:
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
            return
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack(_INTERFACE, b"lo", _IFF_UP, b""))


def _keep_input() -> None:
    """Put the spec into a file without a name: all processes read it, however often they are started."""
    kept = os.memfd_create("spec")
    with os.fdopen(os.dup(kept), "wb") as file:
        file.write(sys.stdin.buffer.read())
    os.dup2(kept, 0)
    os.close(kept)


def _launched(place: Place, work: Work, *, processes: int) -> bool:
    """Start the processes and wait for their end; tell whether it was a good one."""
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # it warns that a loopback has no name
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415 - it is large
    from torch.distributed.elastic.rendezvous import RendezvousError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: PLC0415

    address = _own_address(place.endpoint)
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    os.environ["GLOO_SOCKET_IFNAME"] = _interface(address)
    # The agent's own store keeps the addresses of processes that are gone, and a new one may read them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=place.machines,
        max_nodes=place.machines,
        nproc_per_node=processes,
        run_id=place.run,
        rdzv_backend="c10d",
        rdzv_endpoint=place.endpoint,
        rdzv_configs={"is_host": place.host, "join_timeout": JOIN_SECONDS},
        max_restarts=MOST_RESTARTS,
        local_addr=address,
        shutdown_timeout=5,
    )
    published = _published(place, work, processes=processes) if place.host and place.machines > 1 else None
    try:
        elastic_launch(config, sys.executable)("-m", "workers.training.rank", str(os.getpid()), *work)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        how = first.signal_name() if first.exitcode < 0 else f"exit code {first.exitcode}"
        words = f"process {rank} of {place.machines * processes} ended with {how} after {MOST_RESTARTS} new starts"
        sys.stdout.write(f"{words}\n")
        return False
    except RendezvousError:
        if place.machines == 1:
            raise
        _refuse(
            f"Not all of the {place.machines} machines met at {place.endpoint} within {JOIN_SECONDS} seconds: run "
            "python -m workers.training.join on the others, or unset OCTET_TRAINING_NODES."
        )
        return False
    finally:
        del published  # until now the others could read it
    return True


def _published(place: Place, work: Work, *, processes: int) -> object:
    from workers.training.join import Order, publish  # noqa: PLC0415 - it imports torch

    order = Order(
        run=place.run,
        stage=work.stage,
        scratch=str(Path.cwd()),
        memory_bytes=int(work.memory),
        scratch_bytes=int(work.disk),
        seconds=float(work.seconds),
        processes=processes,
        machines=place.machines,
        spec=Path("/proc/self/fd/0").read_text(),
    )
    return publish(order, place.endpoint)


def _refuse(message: str) -> int:
    send({"code": DoesNotFit.code, "message": message})
    return 1


def _own_address(endpoint: str) -> str:
    """Return the address of this machine that others on the way to the endpoint see."""
    host, port = endpoint.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port) or 1))  # sends nothing
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
