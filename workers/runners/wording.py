"""What leaves a runner of an engine's words: no files and lines of its source, no path of the machine."""

import re

_PLACES = re.compile(r"Exception from |(?:at )?\S+\.(?:cc|cpp|cu|h|hpp):\d+\S*|(?<!\S)['\"(]?/\S+")


def outward(error: Exception) -> str:
    """Return an error as one line that may be shown to whoever asked."""
    if isinstance(error, OSError):
        return f"its file cannot be read ({error.strerror})"
    return " ".join(_PLACES.sub(" ", str(error)).split())
