"""Trying again while the store or Redis is away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.domain.errors import Unavailable

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
_AGAIN_SECONDS = 1.0

Answer = TypeVar("Answer")


class AttemptLost(Exception):
    """This attempt cannot go on, through no fault of the job: it is left unfinished, for another to take it over."""


async def patiently(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Try again while the store or Redis is away: a job that did its work should not be lost over it.

    Raises:
        Unavailable: it is still away after a minute.
    """
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        try:
            return await call()
        except Unavailable as error:
            if asyncio.get_running_loop().time() > deadline:
                raise
            log.warning("%s", error)
        await asyncio.sleep(_AGAIN_SECONDS)


async def taken_over(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Read patiently what an earlier attempt left: to begin anew would throw away hours.

    Raises:
        AttemptLost: the store is still away after a minute.
    """
    try:
        return await patiently(call)
    except Unavailable as error:
        raise AttemptLost(f"What an earlier attempt left cannot be read: {error.message}") from error
