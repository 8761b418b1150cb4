"""`Idempotency-Key`: the same request sent twice is one job. A key is tied to a job and to what was asked."""

import hashlib
import re
from contextlib import AsyncExitStack

from app.api.dependencies import Services
from app.domain.errors import Conflict, RequestInvalid
from app.domain.jobs import Job

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


async def claim(services: Services, key: str, *, request: bytes, job: str, undo: AsyncExitStack) -> Job | None:
    """Tie a key to a job that is about to be made; return the job it was tied to before, if it was.

    Args:
        request: what is asked for, in one spelling.
        undo: gets what unties a key that was tied now.

    Raises:
        RequestInvalid: the key is unusable, or was used for another request.
        Conflict: the first request with this key is still being answered.
    """
    if not _KEY.fullmatch(key):
        raise RequestInvalid("Idempotency-Key must be 1 to 255 printable ASCII characters without spaces.")
    fingerprint = hashlib.sha256(request).hexdigest()
    tied = await services.live.claim(_stored(key), f"{job} {fingerprint}")
    tied_job, _, tied_fingerprint = tied.partition(" ")
    if tied_job == job:
        undo.push_async_callback(services.live.release, _stored(key))
        return None
    if tied_fingerprint != fingerprint:
        raise RequestInvalid("This Idempotency-Key was used for another request: take a new key for a new request.")
    known = await services.live.get(tied_job) or await services.history.get(tied_job)
    if known is None:
        raise Conflict("The first request with this Idempotency-Key is still being answered: try again in a moment.")
    return known


async def keep(services: Services, key: str) -> None:
    """Keep a claim for a day: its job is queued. One that is not kept ends by itself, should this process die."""
    await services.live.keep_claim(_stored(key))


def _stored(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
