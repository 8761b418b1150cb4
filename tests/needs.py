"""What a test needs of the machine. A test that lacks it is skipped; in continuous integration it fails."""

import os
import shutil
from typing import NoReturn

import pytest

from workers import own_network


def absent(needed: str) -> NoReturn:
    """Skip with the reason; in continuous integration, where nothing may be lacking, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{needed} is missing")
    pytest.skip(f"needs {needed}")


def installed(program: str, *, package: str) -> str:
    """Return where a program is."""
    return shutil.which(program) or absent(f"{program} of Debian's package {package}")


def need_root() -> None:
    """Go on as root alone."""
    if os.geteuid() != 0:
        absent("root")


def need_own_network() -> None:
    """Go on where processes that train together get a network of their own, and a core each for two of them.

    Both are the machine's to give, and no set-up can install them: without them these tests skip everywhere.
    """
    if not own_network.available():
        pytest.skip("needs a kernel that gives a process a network of its own (unshare)")
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("needs two cores")
