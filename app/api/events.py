"""A job's states as server-sent events (WHATWG HTML, section 9.2)."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import aclosing

from app.api.dependencies import Services
from app.catalogue.records import to_json
from app.domain.errors import JobNotFound, QueueUnavailable, RequestInvalid, TooMany
from app.domain.jobs import Job

_log = logging.getLogger("octet.api")
_EVENT_ID = re.compile(r"\d{1,20}(-\d{1,20})?")
_JOB_ID = re.compile(r"[0-9a-f]{32}")
KEEP_ALIVE = b": still here\n\n"


async def find_job(services: Services, job: str) -> Job:
    """Return a job, live or from history.

    Raises:
        JobNotFound: there is none.
    """
    missing = JobNotFound(f"There is no job {job[:80]!r}: list them at /v1/jobs.")
    if not _JOB_ID.fullmatch(job):
        raise missing
    found = await services.live.get(job) or await services.history.get(job)
    if found is None:
        raise missing
    return found


def check_event_id(last: str | None) -> str | None:
    """Return a client's Last-Event-ID, None if it has seen nothing yet.

    Raises:
        RequestInvalid: it is none that Octet has sent.
    """
    if last and not _EVENT_ID.fullmatch(last):
        raise RequestInvalid(f"Last-Event-ID {last[:40]!r} is none of Octet's: leave the header out to begin anew.")
    return last or None


async def job_events(services: Services, job: Job, *, after: str | None) -> AsyncIterator[bytes]:
    """Yield a job's states until it is final, with a comment now and then that keeps the connection alive.

    Ends early when Redis goes away or the process stops: a client that connects again goes on where it was.
    """
    if job.state.final and (after is not None or await services.live.get(job.id) is None):
        yield _event(job)
        return
    try:
        async with aclosing(services.live.follow(job.id, after=after or "0")) as events:
            async for event in events:
                if services.stopping.is_set():
                    return
                if event is not None:
                    yield _event(event[1], id_=event[0])
                    continue
                yield KEEP_ALIVE
                known = await find_job(services, job.id)
                if known.state.final:  # its events are gone from Redis, or end before the one that the client has seen
                    yield _event(known)
                    return
    except (QueueUnavailable, JobNotFound, TooMany) as error:
        _log.warning("events broke off", extra={"octet": {"job": job.id, "reason": error.message}})


def _event(job: Job, *, id_: str | None = None) -> bytes:
    named = b"" if id_ is None else f"id: {id_}\n".encode()
    return named + b"event: job\ndata: " + to_json(job) + b"\n\n"
