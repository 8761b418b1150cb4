"""The system calls a confined process may not make: the table, and the seccomp filter made from it.

A deny-list, because the libraries inside call what they like from release to release; files are Landlock's.
"""

import errno
import fcntl
import mmap
import os
import socket
import termios
from collections.abc import Collection

import pyseccomp as seccomp

# Refused whatever their arguments.
_DENIED: dict[str, str] = {
    "network": "socket socketpair connect bind listen accept accept4 sendto sendmsg sendmmsg recvmmsg",
    "programs and processes": "execve execveat fork vfork setsid setpgid unshare setns chroot pivot_root",
    "other processes": (
        "ptrace process_vm_readv process_vm_writev kill tkill rt_sigqueueinfo rt_tgsigqueueinfo kcmp pidfd_open "
        "pidfd_getfd pidfd_send_signal process_madvise process_mrelease migrate_pages move_pages ioprio_set"
    ),
    # Landlock has no word on these, and the installation may belong to the user that runs the stage.
    "modes, owners and times": (
        "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat setxattr lsetxattr fsetxattr "
        "removexattr lremovexattr fremovexattr utime utimes utimensat futimesat truncate"
    ),
    # Nor on these: they tell what others open and write.
    "watching files": "inotify_init inotify_init1 inotify_add_watch",
    "identity": ("setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset personality"),
    # Memory that the watchdog would not see: it belongs to no process.
    "memory outside the process": (
        "memfd_create memfd_secret shmget shmat shmctl semget semop msgget msgsnd mq_open mq_unlink"
    ),
    "mounts": (
        "mount umount2 move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr mknod mknodat "
        "symlink symlinkat swapon swapoff quotactl quotactl_fd name_to_handle_at open_by_handle_at fanotify_init"
    ),
    "the kernel": (
        "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register io_setup "
        "keyctl add_key request_key init_module finit_module delete_module kexec_load kexec_file_load "
        "reboot acct syslog iopl ioperm modify_ldt "
        "settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname vhangup lookup_dcookie"
    ),
}

# Refused with "no such call", so that the caller falls back to an older one whose arguments the filter can read.
_UNKNOWN = {"clone3": errno.ENOSYS, "openat2": errno.ENOSYS, "fallocate": errno.EOPNOTSUPP}

# Calls younger than this table; from 424 on, numbers are the same on every architecture.
_TOO_NEW = range(463, 600)

_CLONE_THREAD = 0x00010000
_LOW = 0xFFFFFFFF  # the kernel reads only these bits of an int argument
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_MM, _PR_SET_PTRACER = 1, 4, 35, 0x59616D61
_F_SETOWN_EX = 15
# A lease, or a watch on a folder, makes others wait or tells on them; a file opened for reading is enough.
_F_SETLEASE, _F_NOTIFY = 1024, 1026
_OWNERSHIP = (fcntl.F_SETOWN, fcntl.F_SETSIG, _F_SETOWN_EX, _F_SETLEASE, _F_NOTIFY)
_TIOCLINUX, _FIOSETOWN, _SIOCSPGRP = 0x541C, 0x8901, 0x8902
# Set a file's flags, sealing and encryption; a file opened for reading is enough. 64-bit and 32-bit numbers.
_FS_IOC_SETFLAGS, _FS_IOC32_SETFLAGS, _FS_IOC_FSSETXATTR = 0x40086602, 0x40046602, 0x401C5820
_FS_IOC_ENABLE_VERITY, _FS_IOC_SET_ENCRYPTION_POLICY = 0x40806685, 0x800C6613
_CONTROLS = (
    *(termios.TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP),
    *(_FS_IOC_SETFLAGS, _FS_IOC32_SETFLAGS, _FS_IOC_FSSETXATTR),
    *(_FS_IOC_ENABLE_VERITY, _FS_IOC_SET_ENCRYPTION_POLICY),
)


def install(*, allowed: Collection[str] = ()) -> None:
    """Refuse these calls, but those in `allowed`, to this thread and all it starts, for good.

    Raises:
        OSError: the kernel did not take the filter.
    """
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    for names in _DENIED.values():
        for name in names.split():
            if name not in allowed:
                _refuse(rules, name)
    for number in _TOO_NEW:
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), number)
    for name, error in _UNKNOWN.items():
        _refuse(rules, name, error=error)
    for name, arguments in _refused_arguments(allowed):
        _refuse(rules, name, *arguments)
    if "socket" in allowed:
        _refuse_families(rules)
    # Engines pin threads of their own by number and complain if they cannot: they are told that it was done.
    _refuse(rules, "sched_setaffinity", _not_zero(0), error=0)
    rules.load()


def _refuse_families(rules: seccomp.SyscallFilter) -> None:
    """Refuse sockets that are not the internet's, but the one that asks the kernel for this machine's addresses."""
    most = max(_FAMILIES)
    for family in set(range(most)) - _FAMILIES:
        _refuse(rules, "socket", _is(0, family))
    _refuse(rules, "socket", seccomp.Arg(0, seccomp.GT, most))
    _refuse(rules, "socket", _is(0, socket.AF_NETLINK), _not_zero(2))


def _refused_arguments(allowed: Collection[str]) -> list[tuple[str, tuple[seccomp.Arg, ...]]]:
    own = os.getpid()
    # What is started by one that may start programs has to tie itself to it.
    options = set(_OPTIONS) - {_PR_SET_PDEATHSIG} if "execve" in allowed else _OPTIONS
    anonymous = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    refused: list[tuple[str, tuple[seccomp.Arg, ...]]] = [
        ("clone", (seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, 0),)),
        ("tgkill", (seccomp.Arg(0, seccomp.NE, own),)),
        # Landlock before its third version does not see a file emptied by opening it for anything but writing.
        *(
            (name, (seccomp.Arg(position, seccomp.MASKED_EQ, os.O_TRUNC | os.O_ACCMODE, os.O_TRUNC | mode),))
            for name, position in (("open", 1), ("openat", 2))
            for mode in (os.O_RDONLY, os.O_ACCMODE)
        ),
        # Pages of a shared anonymous mapping can outlive their place in the process's count.
        ("mmap", (seccomp.Arg(3, seccomp.MASKED_EQ, anonymous, anonymous),)),
        *((name, (_not_zero(0),)) for name in _OF_A_PROCESS),
        # Its first argument is 0 for one process, its second 0 for the caller.
        ("setpriority", (_not_zero(0),)),
        ("setpriority", (_not_zero(1),)),
        *(("prctl", (_is(0, option),)) for option in options),
        # A signal may also be sent by naming another process the owner of a pipe.
        *(("fcntl", (_is(1, command),)) for command in _OWNERSHIP),
        *(("ioctl", (_is(1, command),)) for command in _CONTROLS),
    ]
    return [(name, arguments) for name, arguments in refused if name not in allowed]


# Their first argument is a process, 0 for the caller.
_OF_A_PROCESS = ("prlimit64", "sched_setscheduler", "sched_setparam", "sched_setattr")
_FAMILIES = {int(socket.AF_INET), int(socket.AF_INET6), int(socket.AF_NETLINK)}
_OPTIONS = (_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_MM, _PR_SET_PTRACER)


def _is(position: int, value: int) -> seccomp.Arg:
    return seccomp.Arg(position, seccomp.MASKED_EQ, _LOW, value)


def _not_zero(position: int) -> seccomp.Arg:
    return seccomp.Arg(position, seccomp.NE, 0)


def _refuse(rules: seccomp.SyscallFilter, name: str, *arguments: seccomp.Arg, error: int = errno.EPERM) -> None:
    try:
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
    except ValueError:
        return  # this architecture, or this release of libseccomp, does not know the call
    if number >= 0:
        rules.add_rule(seccomp.ERRNO(error), name, *arguments)
