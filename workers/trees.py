"""Removes a folder that a hostile process filled: nested without end, closed to its owner, full of links."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below it, without following a link and without recursion. A missing one is fine.

    Folders further down are first moved up to the top, so that neither depth nor the length of a path counts.
    Nobody else may be at work in it.

    Raises:
        OSError: something in it cannot be removed.
    """
    try:
        with _opened(os.fspath(folder), inside=None) as top:
            while folders := _unlink_files(top):
                for name in folders:
                    _lift(name, top)
        folder.rmdir()
    except FileNotFoundError:
        return


def _lift(name: str, top: int) -> None:
    """Remove one folder of `top`; its own folders become `top`'s."""
    with _opened(name, inside=top) as folder:
        for inner in _unlink_files(folder):
            with _opened(inner, inside=folder):  # a folder that cannot be written to cannot be moved either
                os.rename(inner, secrets.token_hex(16), src_dir_fd=folder, dst_dir_fd=top)
    os.rmdir(name, dir_fd=top)


def _unlink_files(folder: int) -> list[str]:
    """Remove everything that is no folder; return the names of the folders."""
    with os.scandir(folder) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_folder in entries:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
    return [name for name, is_folder in entries if is_folder]


@contextmanager
def _opened(name: str, *, inside: int | None) -> Iterator[int]:
    """Open a folder, whatever its mode, after giving its owner every right to it."""
    known = os.open(name, os.O_PATH | _FOLDER, dir_fd=inside)
    try:
        itself = Path(f"/proc/self/fd/{known}")
        itself.chmod(0o700)
        folder = os.open(itself, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(known)
    try:
        yield folder
    finally:
        os.close(folder)
