"""Makes what a process says that may be hostile fit to be read by others: in logs, manifests, reports and terminals."""

import sys
from pathlib import Path

import workers


def printable(text: str, most: int) -> str:
    """Return at most so many characters of a text, all of which can be shown."""
    kept = "".join(char if char.isprintable() else " " for char in text[: most + 1])
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def without_paths(line: str, scratch: Path) -> str:
    """Say `…/file.py` for a file of this machine: a user may read the log."""
    for folder in (str(scratch), sys.prefix, sys.base_prefix, *(str(Path(path).parent) for path in workers.__path__)):
        line = line.replace(f"{folder}/", "…/")
    return line
