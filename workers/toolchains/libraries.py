"""Versions of the libraries that made an artifact, read from their metadata and not by importing them."""

from collections.abc import Iterable
from importlib.metadata import version


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return each installed distribution's version."""
    return {name: version(name) for name in names}
