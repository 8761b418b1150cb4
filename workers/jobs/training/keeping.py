"""Bringing the states of a training to the store while it goes on: one at a time, always the newest."""

import asyncio
from types import TracebackType
from typing import Self

from app.catalogue.checkpoints import Checkpoints
from app.domain.errors import OctetError
from workers.jobs.bench import Bench
from workers.outputs import open_output
from workers.stage_records.training import CHECKPOINT_OUTPUT

_UPLOAD_SECONDS = 600.0
"""After which a store that takes a state is believed to hang, and is given the next one."""

_BREAKING_OFF_SECONDS = 5.0
"""How long a store that hangs may hold up the end of a training."""


class Keeper:
    """Use it as a block around the stage; an upload under way at its end is broken off: nobody will go on from there.

    A state that cannot be stored costs no training: the job's log says so, and the one before stays.

    Args:
        starts: SHA-256 of what training begins from, in order.
    """

    def __init__(self, bench: Bench, checkpoints: Checkpoints, *, starts: tuple[str, ...]) -> None:
        self._bench, self._checkpoints, self._starts = bench, checkpoints, starts
        self._asked: int | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def take(self, step: int) -> None:
        """Store the state of a step, as soon as the one before it is stored."""
        self._asked = step
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep_all())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping], timeout=_BREAKING_OFF_SECONDS)

    async def _keep_all(self) -> None:
        while (step := self._asked) is not None:
            self._asked = None
            await self._keep(step)

    async def _keep(self, step: int) -> None:
        limit = self._bench.workshop.limits.scratch_bytes
        try:
            async with asyncio.timeout(_UPLOAD_SECONDS):
                with open_output(self._bench.scratch, CHECKPOINT_OUTPUT) as file:
                    await self._checkpoints.keep(step, file, starts=self._starts, limit_bytes=limit)
        except (OctetError, OSError) as error:
            await self._bench.log(
                f"the checkpoint of step {step} was not stored, the one before it stays: {error or 'time is up'}"
            )
