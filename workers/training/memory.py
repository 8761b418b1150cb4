"""What memory this process itself holds: pages of mapped files do not count, the kernel takes those back at will."""

from pathlib import Path


class Peak:
    """The most memory that was held at the moments when somebody looked."""

    def __init__(self) -> None:
        self.most_bytes = held_bytes()

    def look(self) -> None:
        """Remember what is held now, if it is the most so far."""
        self.most_bytes = max(self.most_bytes, held_bytes())


def held_bytes() -> int:
    """Return the memory of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "RssAnon":
            return int(value.split()[0]) * 1024
    return 0
