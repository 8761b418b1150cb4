"""Import jobs: queued with every upload, and queued again when a lost Redis has forgotten them."""

import logging
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Literal

from app.api.dependencies import Services
from app.api.submission import submit
from app.catalogue.shelf import Entry, Manifest, Shelf, fail_upload
from app.domain.jobs import Job, JobKind, JobState
from app.domain.models import ReadyState, Upload

Subject = Literal["model", "dataset"]

_log = logging.getLogger("octet.api")

# An upload is visible a moment before its job is: a younger one has not lost it.
_GRACE = timedelta(minutes=1)
_TURN_SECONDS = 60


def import_job(upload: Upload, *, subject: Subject) -> Job:
    """Return the record of the job that reads an upload."""
    reference = f"{upload.name}:{upload.version}"
    return Job(
        id=upload.job,
        kind=JobKind.IMPORT,
        created_at=upload.created_at,
        subject=subject,
        model=reference if subject == "model" else None,
        dataset=reference if subject == "dataset" else None,
    )


async def mend_imports(services: Services) -> None:
    """Queue every import again that Redis has lost."""
    await _mend_shelf(services, services.models, subject="model")
    await _mend_shelf(services, services.datasets, subject="dataset")


async def mend(services: Services, entry: Entry[Manifest], *, subject: Subject) -> None:
    """Queue an entry's import again, under its own id, if neither Redis nor history knows what became of it."""
    upload = entry.upload
    if entry.state is not ReadyState.IMPORTING or datetime.now(UTC) - upload.created_at < _GRACE:
        return
    ended = await services.history.get(upload.job)
    if ended is not None:  # and its worker died before it could tell the upload
        await fail_upload(ended, models=services.models, datasets=services.datasets)
        return
    if await _is_lost(services, upload.job) and await services.live.take_turn(upload.job, seconds=_TURN_SECONDS):
        _log.warning("a lost import is queued again", extra={"octet": {"job": upload.job}})
        async with AsyncExitStack() as undo:
            await submit(services, import_job(upload, subject=subject), undo=undo)
            undo.pop_all()


async def _mend_shelf(services: Services, shelf: Shelf[Manifest], *, subject: Subject) -> None:
    for name in await shelf.names():
        for entry in await shelf.versions(name):
            await mend(services, entry, subject=subject)


async def _is_lost(services: Services, job: str) -> bool:
    live = await services.live.get(job)
    return (live is None or live.state is JobState.QUEUED) and not await services.queue.knows(job)
