"""NNCF as Octet calls it: quiet, with sessions of Octet's, its errors one sentence."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import nncf
import nncf.errors
import onnxruntime

from app.domain.errors import ToolchainFailed
from workers.toolchains.finish import ONNXRUNTIME_ERRORS
from workers.toolchains.nncf.engine import install

_FATAL = 4
_MOST_CHARACTERS = 160
_NNCF_ERRORS = tuple(
    error for error in vars(nncf.errors).values() if isinstance(error, type) and issubclass(error, Exception)
)
ERRORS: tuple[type[Exception], ...] = (
    *_NNCF_ERRORS,
    *ONNXRUNTIME_ERRORS,
    # What NNCF lets through from its own code when it meets a graph it does not understand.
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def settle() -> None:
    """Have NNCF use Octet's sessions, and write nothing that is raised besides."""
    install()
    nncf.set_log_level(logging.ERROR)
    # in the sandbox it complains of each thread it may not pin
    onnxruntime.set_default_logger_severity(_FATAL)


@contextmanager
def nncf_failures() -> Iterator[None]:
    """Turn whatever NNCF stumbles over into one sentence.

    Raises:
        ToolchainFailed: NNCF failed inside the block.
    """
    try:
        yield
    except ERRORS as error:
        raise ToolchainFailed(f"NNCF cannot quantize this graph as the recipe says: {said(error)}.") from error


def said(error: Exception) -> str:
    """Return what an error says in one line, or its kind where it says nothing."""
    words = " ".join(str(error).split()).rstrip(".")
    kind = type(error).__name__
    return f"{kind}: {words}"[:_MOST_CHARACTERS] if words else kind
