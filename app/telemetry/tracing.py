"""What a trace of a prediction needs, without the library that sends it: that is imported only where traces go."""

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol

ROUTE = "/v1/traces"
_MOST_BYTES = 512

ProtocolName = Literal["predict", "v2", "grpc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks for a prediction, as far as a trace tells.

    Attributes:
        traceparent: the caller's own span, as W3C's Trace Context writes it; empty if it sent none.
    """

    protocol: ProtocolName = "predict"
    traceparent: str = ""
    tracestate: str = ""


CALLER: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 - it is frozen
"""Set at the edge where `Instruments.traces` is not None; read when the prediction ends, in the same task."""


class Traces(Protocol):
    """Takes predictions that have ended. Called on the event loop: must not block, must not raise."""

    def record(
        self,
        labels: tuple[str, str, str],
        *,
        outcome: str,
        reason: str | None,
        seconds: float,
        answered_seconds_ago: float | None,
        queue_seconds: float,
        compute_seconds: float,
        rows: int,
    ) -> None:
        """Record one that ended just now; `answered_seconds_ago` is None if no runner answered it."""


def note_http_caller(path: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Remember who asks, from an ASGI scope's path and headers."""
    found = {name: value for name, value in headers if name in (b"traceparent", b"tracestate")}
    CALLER.set(
        Caller(
            protocol="v2" if path.startswith("/v2/") else "predict",
            traceparent=_text(found.get(b"traceparent", b"")),
            tracestate=_text(found.get(b"tracestate", b"")),
        )
    )


def note_grpc_caller(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Remember who asks, from a call's metadata."""
    found = {name: value for name, value in metadata if name in ("traceparent", "tracestate")}
    CALLER.set(
        Caller(
            protocol="grpc",
            traceparent=_text(found.get("traceparent", "")),
            tracestate=_text(found.get("tracestate", "")),
        )
    )


def traces_url(endpoint: str) -> str:
    """Return where spans are posted: an endpoint without a path of its own gets the standard one."""
    base = endpoint.rstrip("/")
    return base if base.endswith(ROUTE) else base + ROUTE


def _text(value: str | bytes) -> str:
    """Return a header's text; one that is too long to be right is none."""
    if len(value) > _MOST_BYTES:
        return ""
    return value if isinstance(value, str) else value.decode("latin-1")
