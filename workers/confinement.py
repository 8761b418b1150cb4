"""What a process takes from itself before it reads anything foreign: files, network, programs, privileges.

Applied in the child: by `workers.stage_child`, which `workers.sandbox` watches from outside, by each process of a
stage that has several, and by a runner.
"""

import ctypes
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Collection, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

from app.domain.errors import SandboxUnavailable
from workers import landlock
from workers.landlock import Access

ALLOW_UNSANDBOXED = "OCTET_ALLOW_UNSANDBOXED"
MAX_OPEN_FILES = 1024
# Thread stacks and what allocators reserve ahead count too; the watchdog counts what is really used.
_DATA_MARGIN_BYTES = 2 * 2**30

_PR_GET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 21, 24, 38
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)

_READ = Access.READ_FILE | Access.READ_DIR
_SCRATCH = _READ | (
    Access.WRITE_FILE | Access.TRUNCATE | Access.MAKE_REG | Access.MAKE_DIR | Access.REMOVE_FILE | Access.REMOVE_DIR
)
# Beside the installation: shared libraries, the processor's description, the process's own entries.
_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/sys/devices/system",
    "/sys/kernel/mm/transparent_hugepage",
    "/dev/urandom",
    "/dev/random",
)
# Of a process's own entries only these: its `net` would show every connection and local socket of the machine.
_OWN_FILES = ("auxv", "cgroup", "maps", "smaps_rollup", "stat", "statm", "status")
_OWN_FOLDERS = ("fd", "task")
# What a runner needs beyond a stage: to answer on the socket it was born with, in memory that it passes on.
_RUNNER_CALLS = ("sendmsg", "memfd_create")
# And what one of several processes of a stage needs: to talk to the others.
_RANK_CALLS = ("socket", "bind", "listen", "accept", "accept4", "connect", "sendto", "sendmsg")
# Who starts them starts programs, ends them again, and lets them give up what it has given up itself.
_LAUNCHER_CALLS = (*_RANK_CALLS, "execve", "fork", "vfork", "clone", "setsid", "kill", "tgkill", "capset")
# Looking for a library takes programs of the system.
_PROGRAMS = ("/bin", "/sbin", "/usr/bin", "/usr/sbin")


@cache
def missing_protections() -> tuple[str, ...]:
    """Name the parts of the sandbox that this machine lacks; empty if it is complete.

    To be asked first before confinement: looking for libseccomp starts a program.
    """
    found = {
        "landlock": landlock.abi() > 0,
        "seccomp": _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0,
        "libseccomp": _loads_libseccomp(),
    }
    return tuple(name for name, present in found.items() if not present)


def _loads_libseccomp() -> bool:
    try:
        import_module("pyseccomp")
    except (ImportError, RuntimeError):
        return False
    return True


def require_complete(what: str) -> None:
    """Refuse to go on where `what` would execute an upload that the kernel cannot confine.

    Raises:
        SandboxUnavailable: a part of the sandbox is missing and nobody allowed to do without.
    """
    missing = missing_protections()
    if missing and os.environ.get(ALLOW_UNSANDBOXED) != "1":
        raise SandboxUnavailable(
            f"Reading {what} can execute code from the file, and this machine cannot confine it "
            f"(missing: {', '.join(missing)}): run the worker on Linux 5.13 or newer with Landlock and seccomp, "
            f"upload ONNX, or set {ALLOW_UNSANDBOXED}=true if you trust every uploader."
        )


def confine(scratch: Path, *, memory_bytes: int, scratch_bytes: int, seconds: float) -> None:
    """Take everything from this process that a stage does not need, as far as the kernel can. There is no way back.

    Raises:
        OSError: the kernel refused a measure that it offers.
    """
    _limit_stage(memory_bytes=memory_bytes, scratch_bytes=scratch_bytes, seconds=seconds)
    _be_first_to_go()
    _shut([(scratch, _SCRATCH)])


def confine_launcher(scratch: Path) -> None:
    """Take every file from this process but the installation's and the scratch folder's, and what ranks never need.

    It may start programs, and what it starts is confined like it, for good, and then itself by `confine_rank`. The
    process must have no threads yet.

    Raises:
        OSError: the kernel refused a measure that it offers.
    """
    _be_first_to_go()  # what it starts is so, too
    programs = [*_installed(), *map(Path, (*_SYSTEM, *_PROGRAMS))]
    files = [(path, _READ | Access.EXECUTE) for path in programs]
    _shut([*files, (Path("/proc"), _READ), (scratch, _SCRATCH), *_network_cards()], calls=_LAUNCHER_CALLS)


def confine_rank(scratch: Path, *, memory_bytes: int, scratch_bytes: int, seconds: float) -> None:
    """Take what `confine` takes, but for the internet's sockets: in the network that it is in, it may talk.

    Raises:
        OSError: the kernel refused a measure that it offers.
    """
    _limit_stage(memory_bytes=memory_bytes, scratch_bytes=scratch_bytes, seconds=seconds)
    _shut([(scratch, _SCRATCH), *_network_cards()], calls=_RANK_CALLS)


def _network_cards() -> list[tuple[Path, Access]]:
    """Return the rules for what gloo reads to find the card that is nearest to the processor, and fails without."""
    listed = Path("/sys/bus/pci/devices")
    kinds = [device / "class" for device in listed.iterdir()] if listed.exists() else []
    return [(listed, Access.READ_DIR), *((kind, Access.READ_FILE) for kind in kinds)]


def _limit_stage(*, memory_bytes: int, scratch_bytes: int, seconds: float) -> None:
    _limit(
        {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
            resource.RLIMIT_FSIZE: scratch_bytes,
            resource.RLIMIT_DATA: memory_bytes + _DATA_MARGIN_BYTES,
            resource.RLIMIT_CPU: int(seconds * (os.cpu_count() or 1)) + 60,
        }
    )
    # A file that grows too large is an error to report, not the end of the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def confine_runner(artifact: Path, *, memory_bytes: int) -> tuple[str, ...]:
    """Leave a runner one file to read, no folder to be in, and nothing to write; return what the machine lacks for it.

    The process must have no threads yet: they would stay as they are.

    Raises:
        OSError: the kernel refused a measure that it offers.
    """
    _limit({resource.RLIMIT_CORE: 0, resource.RLIMIT_DATA: memory_bytes + _DATA_MARGIN_BYTES})
    _be_nowhere()
    searched = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    _shut([(artifact, _READ), *((Path(folder), _READ) for folder in searched if folder)], calls=_RUNNER_CALLS)
    return missing_protections()


def _be_nowhere() -> None:
    """Make the working directory one that is removed already: a relative path then leads to no file."""
    try:
        nowhere = Path(tempfile.mkdtemp(prefix="octet-runner-"))
    except OSError:
        os.chdir("/")  # no folder for temporary files: Landlock has to do
        return
    os.chdir(nowhere)
    nowhere.rmdir()


def _shut(files: list[tuple[Path, Access]], *, calls: Collection[str] = ()) -> None:
    """Give up privileges, every file but the installation's and `files`, and every dangerous call but `calls`."""
    give_up_privileges()
    missing = missing_protections()
    if "landlock" not in missing:
        landlock.restrict([*_installation(), *_own_entries(), *files], tcp="socket" in calls)
    if "seccomp" not in missing and "libseccomp" not in missing:
        from workers import syscalls  # noqa: PLC0415 - its library may be absent

        syscalls.install(allowed=calls)


def give_up_privileges() -> None:
    """Drop every capability, for this process and all it starts.

    Raises:
        OSError: the kernel refused it.
    """
    _drop_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _installation() -> list[tuple[Path, Access]]:
    return [
        *((path, _READ) for path in (*_installed(), *map(Path, _SYSTEM))),
        (Path("/dev/null"), Access.READ_FILE | Access.WRITE_FILE),
    ]


def _installed() -> list[Path]:
    import app  # noqa: PLC0415 - only to know where it is
    import workers  # noqa: PLC0415

    packages = [Path(folder) for package in (app, workers) for folder in package.__path__]
    return [Path(sys.prefix), Path(sys.base_prefix), *packages]


def _own_entries() -> list[tuple[Path, Access]]:
    """Return the rules for this process's entries in /proc. A folder among them may be listed, not read below."""
    rights = {**dict.fromkeys(_OWN_FILES, Access.READ_FILE), **dict.fromkeys(_OWN_FOLDERS, Access.READ_DIR)}
    rules = [(Path("/proc/self") / name, access) for name, access in rights.items()]
    for path, _ in rules:
        if path.exists():
            # Never closed: the kernel may forget an entry that nobody holds, and the rule with it.
            os.open(path, os.O_PATH | os.O_CLOEXEC)
    return rules


def _limit(limits: Mapping[int, int]) -> None:
    for which, limit in limits.items():
        hard = resource.getrlimit(which)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (value, value))


def _be_first_to_go() -> None:
    """If the machine runs out of memory, the kernel ends this process rather than the worker."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def _drop_capabilities() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # refused where there is none to drop
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset failed: this process would keep its privileges")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
