"""Telling a stage that trains to end with what it has, because someone asked for that."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.domain.errors import QueueUnavailable
from workers.jobs.bench import Bench
from workers.stage_records.training import STOP_INPUT

log = logging.getLogger(__name__)

_ASK_EVERY_SECONDS = 1.0
_AS_IT_IS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe without a reader would be waited for


@asynccontextmanager
async def stopped_on_request(bench: Bench) -> AsyncIterator[None]:
    """Ask every second, inside the block, whether the job is to finish early, and then tell the stage every second."""
    asking = asyncio.create_task(_ask(bench))
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _ask(bench: Bench) -> None:
    while True:
        if await _asked(bench):
            break
        await asyncio.sleep(_ASK_EVERY_SECONDS)
    said = "training was asked to end with what it has"
    await bench.log(said)
    while True:
        words = _request(bench.scratch)
        if words not in (None, said):
            await bench.log(words)
            said = words
        await asyncio.sleep(_ASK_EVERY_SECONDS)


def _request(scratch: Path) -> str | None:
    try:
        request_stop(scratch)
    except OSError as error:  # a stage may have left anything there
        return f"training could not be told to end, and will be told again: {error.strerror}"
    return None


async def _asked(bench: Bench) -> bool:
    try:
        return await bench.workshop.live.asked_to_finish(bench.job.id)
    except QueueUnavailable as error:
        log.warning("whether job %s is to finish is not known: %s", bench.job.id, error)
        return False


def request_stop(scratch: Path) -> None:
    """Make the file that ends training, through no link that a stage may have put in its place."""
    folder, name = Path(STOP_INPUT).parts
    inside = os.open(scratch / folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | _AS_IT_IS, 0o600, dir_fd=inside))
    finally:
        os.close(inside)
