"""What a test needs of the machine. A test that lacks it is skipped; in continuous integration it fails."""

import os
import shutil
from typing import NoReturn

import pytest


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
