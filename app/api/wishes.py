"""What a request wishes for in its headers: a deadline, a variant of its own."""

import math

from fastapi import Request

from app.api.predictions import Wishes
from app.api.resolution import affinity_of
from app.domain.errors import RequestInvalid

TIMEOUT = "x-request-timeout-ms"


def wishes_of(request: Request) -> Wishes:
    """Read the wishes.

    Raises:
        RequestInvalid: a header cannot be used.
    """
    return Wishes(timeout_seconds=_timeout_seconds(request.headers.get(TIMEOUT)), affinity=affinity_of(request))


def _timeout_seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise RequestInvalid(
            f"X-Request-Timeout-Ms is {text[:40]!r}: send how many milliseconds the answer may take, above 0."
        )
    return milliseconds / 1000
