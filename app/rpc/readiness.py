"""Whether this process should be sent predictions. Many may ask often; the store is asked twice a second at most."""

import asyncio
import time

from app.api.dependencies import Services
from app.domain.errors import Unavailable

KEEP_SECONDS = 0.5


class Readiness:
    """Remembers for a moment whether the store answers."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._asking = asyncio.Lock()
        self._answers = False
        self._until = 0.0

    async def now(self) -> bool:
        """Say whether the store answers, and the process has not been told to stop."""
        async with self._asking:
            if time.monotonic() >= self._until:
                self._answers = await self._store_answers()
                self._until = time.monotonic() + KEEP_SECONDS
        return self._answers and not self._services.stopping.is_set()

    async def _store_answers(self) -> bool:
        try:
            await self._services.store.check()
        except Unavailable:
            return False
        return True
