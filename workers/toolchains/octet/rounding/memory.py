"""Memory that was freed, given back to the system."""

import ctypes


def give_back() -> None:
    """Return freed memory: the C library keeps what a toolchain or a layer has used, as much as the graphs weigh."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
