"""ONNX Runtime's quantizer warns, on the root logger, of each tensor it was not asked to quantize: not inside this."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Let errors alone reach the root logger while the block, or the decorated function, runs."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
