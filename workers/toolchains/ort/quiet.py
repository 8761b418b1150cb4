"""ONNX Runtime's quantizer warns, on the root logger, of each tensor it was not asked to quantize: not inside this."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Drop what is logged on the root logger itself, below an error, while the block or the decorated function runs.

    A filter, not a level: other loggers go on, and two threads cannot leave each other's level behind.
    """

    def severe(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root = logging.getLogger()
    root.addFilter(severe)
    try:
        yield
    finally:
        root.removeFilter(severe)
