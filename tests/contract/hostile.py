"""Crafts uploads that attack: real `.pt2` archives that execute code when loaded, and zips that leave their folder."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

_SAMPLE_INPUTS = "data/sample_inputs/model.pt"


class _Executes:
    """A pickle of this runs source code when it is loaded."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __reduce__(self) -> tuple[Any, tuple[str, dict[str, Any]]]:
        return exec, (self._source, {})


def small_pt2(path: Path, *, batch: int | None = None) -> Path:
    """Write a small classifier as `torch.export.save` does: float32[N, 3, 8, 8] to 4 logits."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    dynamic = ({0: torch.export.Dim("rows")},) if batch is None else None
    module = _Wrapped(nn.Sequential(*layers)).eval()
    exported = torch.export.export(module, (torch.randn(batch or 2, 3, 8, 8),), dynamic_shapes=dynamic)
    torch.export.save(exported, path)
    return path


class _Wrapped(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layers(x)
        return answer


def executing_pt2(path: Path, source: str) -> Path:
    """Write a real `.pt2` whose sample inputs are a pickle that runs `source`; the loader unpickles them."""
    honest = small_pt2(path.with_suffix(".honest.pt2"))
    with zipfile.ZipFile(honest) as reader, zipfile.ZipFile(path, "w") as writer:
        for name in reader.namelist():
            payload = pickle.dumps(_Executes(source))
            writer.writestr(name, payload if name.endswith(_SAMPLE_INPUTS) else reader.read(name))
    honest.unlink()
    return path


def archive(path: Path, members: dict[str, bytes], *, link: str | None = None, packed: bool = False) -> Path:
    """Write a zip; `link` names a member that is a symbolic link to /etc/passwd."""
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, content in members.items():
            file.writestr(name, content)
        if link is not None:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = 0o120777 << 16
            file.writestr(entry, "/etc/passwd")
    return path


def bomb(path: Path, *, declared_bytes: int) -> Path:
    """Write a zip that unpacks to many zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("model.onnx", "w") as member:
        for _ in range(declared_bytes // 2**20):
            member.write(bytes(2**20))
    return path


def checkpoint(path: Path) -> Path:
    """Write what `torch.save(module.state_dict(), path)` writes."""
    buffer = io.BytesIO()
    torch.save(nn.Linear(2, 2).state_dict(), buffer)
    path.write_bytes(buffer.getvalue())
    return path


ATTEMPTS = r'''
import ctypes, fcntl, json, mmap, os, signal, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
own = open(os.__file__).name
tried = {}

def attempt(name):
    """Run an attack at once; it succeeded unless it raised."""
    def run(attack):
        try:
            attack()
            tried[name] = "succeeded"
        except (OSError, subprocess.SubprocessError, AssertionError) as error:
            tried[name] = "failed: " + repr(error)
    return run

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def holding(attack, path=own):
    opened = os.open(path, os.O_RDONLY)
    try:
        attack(opened)
    finally:
        os.close(opened)

def set_flags(request, size):
    holding(lambda opened: fcntl.ioctl(opened, request, bytes(size)))

def pinned(process):
    assert os.sched_getaffinity(process) == {0}

def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True

def found_secret(text):
    assert SECRET in text

attempt("write beside the scratch folder")(lambda: open(OUTSIDE + "/planted", "w").write("x"))
attempt("overwrite a file outside")(lambda: open(VICTIM, "w"))
attempt("append to a file outside")(lambda: open(VICTIM, "a"))
attempt("empty a file outside")(lambda: os.truncate(VICTIM, 0))
attempt("empty a file by opening it")(lambda: os.open(VICTIM, os.O_RDONLY | os.O_TRUNC))
attempt("read a file outside")(lambda: open(VICTIM).read())
attempt("list a folder outside")(lambda: os.listdir(OUTSIDE))
attempt("remove a file outside")(lambda: os.remove(VICTIM))
attempt("rename a file outside")(lambda: os.rename(VICTIM, VICTIM + ".taken"))
attempt("move a file out")(lambda: (open("loot", "w").close(), os.rename("loot", OUTSIDE + "/loot")))
attempt("make a folder outside")(lambda: os.mkdir(OUTSIDE + "/folder"))
attempt("write into the installation")(lambda: open(os.path.dirname(own) + "/planted.py", "w"))
attempt("overwrite the installation")(lambda: open(own, "r+"))
attempt("link the installation here")(lambda: os.link(own, "linked"))
attempt("read the accounts")(lambda: open("/etc/passwd").read())
attempt("list the root folder")(lambda: os.listdir("/"))
attempt("list the processes")(lambda: os.listdir("/proc"))
attempt("read the parent's environment")(lambda: open(f"/proc/{parent}/environ").read())
attempt("read the parent's memory")(lambda: open(f"/proc/{parent}/mem", "rb"))
attempt("find a secret in the environment")(lambda: found_secret(repr(dict(os.environ))))
attempt("find a secret in its first environment")(lambda: found_secret(open("/proc/self/environ").read()))
attempt("connect")(lambda: socket.create_connection(("127.0.0.1", PORT), timeout=5))
attempt("listen")(lambda: socket.create_server(("127.0.0.1", 0)))
attempt("send a datagram")(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", PORT)))
attempt("open a local socket")(lambda: socket.socket(socket.AF_UNIX))
attempt("open a socket pair")(lambda: socket.socketpair())
attempt("open a kernel socket")(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("start a program")(lambda: subprocess.run([sys.executable, "-c", ""], check=True))
attempt("start a shell")(lambda: subprocess.check_call("true", shell=True))
attempt("become a program")(lambda: os.execv(sys.executable, [sys.executable, "-c", "raise SystemExit(7)"]))
attempt("fork")(lambda: os.fork() or os._exit(0))
attempt("spawn")(lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}))
attempt("vfork")(lambda: call(58))
attempt("clone a process")(lambda: call(56, ctypes.c_ulong(signal.SIGCHLD), None, None, None, None) or os._exit(0))
attempt("clone a process the new way")(lambda: call(435, (ctypes.c_uint64 * 11)(), ctypes.c_size_t(88)))
attempt("ask the parent if it lives")(lambda: os.kill(parent, 0))
attempt("kill the parent")(lambda: os.kill(parent, signal.SIGKILL))
attempt("kill the parent's thread")(lambda: call(234, parent, parent, int(signal.SIGKILL)))
attempt("kill through a pidfd")(lambda: signal.pidfd_send_signal(os.pidfd_open(parent), signal.SIGKILL))
attempt("name the parent the owner of a pipe")(lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, parent))
attempt("trace the parent")(lambda: call(101, ctypes.c_long(16), ctypes.c_long(parent), None, None))
attempt("read the parent's memory by call")(lambda: call(310, parent, None, 0, None, 0, 0))
attempt("slow the parent down")(lambda: os.setpriority(os.PRIO_PROCESS, parent, 19))
attempt("pin the parent")(lambda: (os.sched_setaffinity(parent, {0}), pinned(parent)))
attempt("limit the parent")(lambda: call(302, parent, 7, (ctypes.c_uint64 * 2)(0, 0), None))
attempt("outlive the parent")(lambda: call(157, 1, 0, 0, 0, 0))
attempt("hide from the parent")(lambda: call(157, 4, 0, 0, 0, 0))
attempt("leave the session")(lambda: os.setpgid(0, 0))
attempt("change a mode outside")(lambda: os.chmod(VICTIM, 0o777))
attempt("change a mode in the installation")(lambda: os.chmod(own, 0o777))
attempt("change an owner")(lambda: os.chown(VICTIM, 1, 1))
attempt("change a time")(lambda: os.utime(VICTIM))
attempt("set an attribute")(lambda: os.setxattr(VICTIM, "user.planted", b"x"))
attempt("make a symbolic link")(lambda: os.symlink("/etc/passwd", "link"))
attempt("make a pipe with a name")(lambda: os.mkfifo("fifo"))
attempt("make a device")(lambda: os.mknod("device", 0o020666, os.makedev(1, 1)))
attempt("change root")(lambda: os.chroot("."))
attempt("make a namespace")(lambda: call(272, 0x10000000))
attempt("mount")(lambda: call(165, b"none", b".", b"tmpfs", 0, None))
attempt("become somebody else")(lambda: os.setuid(12345))
attempt("take memory nobody owns")(lambda: os.memfd_create("hidden"))
attempt("take shared memory")(lambda: call(29, 0, ctypes.c_size_t(4096), 0o1600))
attempt("map shared memory")(lambda: mmap.mmap(-1, 4096))
attempt("reserve disk")(lambda: call(285, os.open("reserved", os.O_RDWR | os.O_CREAT), 0, 0, ctypes.c_size_t(4096)))
attempt("use io_uring")(lambda: call(425, 1, (ctypes.c_uint8 * 120)()))
attempt("load a kernel program")(lambda: call(321, 0, None, 0))
attempt("catch page faults")(lambda: call(323, 0))
attempt("use the kernel's keys")(lambda: call(250, 0, -3, 0, 0, 0))
attempt("set the clock")(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))
attempt("lease a file of the installation")(lambda: holding(lambda file: fcntl.fcntl(file, 1024, fcntl.F_WRLCK)))
attempt("watch a folder by its descriptor")(lambda: holding(lambda folder: fcntl.fcntl(folder, 1026, 1), sys.prefix))
attempt("watch a folder outside")(lambda: call(254, call(294, 0), OUTSIDE.encode(), 0xFFF))
attempt("set flags of the installation")(lambda: set_flags(0x40086602, 8))
attempt("set flags of the installation the short way")(lambda: set_flags(0x40046602, 4))
attempt("set attributes of the installation")(lambda: set_flags(0x401C5820, 28))
attempt("seal a file")(lambda: set_flags(0x40806685, 128))
attempt("queue reads in the kernel")(lambda: call(206, 128, ctypes.byref(ctypes.c_ulong(0))))
attempt("list the connections")(lambda: open("/proc/self/net/tcp").read())
attempt("list the local sockets")(lambda: open("/proc/self/net/unix").read())
attempt("list the connections by a thread")(lambda: open(f"/proc/self/task/{os.getpid()}/net/tcp").read())
attempt("list the mounts")(lambda: open("/proc/self/mountinfo").read())
attempt("list the control groups")(lambda: os.listdir("/sys/fs/cgroup"))
attempt("use a call younger than the filter")(lambda: call(463, 0, 0, 0, 0, 0, 0))
tried["descriptors"] = [os.readlink(f"/proc/self/fd/{number}") for number in range(64) if is_open(number)]
with open("attempts.json", "w") as file:
    json.dump(tried, file)
'''
