"""Keep one variant answering: start its runner, start it again when it dies, send again what it took along."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from app.domain.errors import QueueFull, RunnerCrashed, VariantNotReady
from app.domain.variants import Variant
from app.serving.requests import Request
from app.serving.runner import Runner, RunnerDied
from app.serving.terms import Inference, Observer, PoolLimits

log = logging.getLogger(__name__)

Fetch = Callable[[Variant], Awaitable[Path]]
"""Bring a variant's artifact to a file on this machine; return its absolute path."""

MOST_DEATHS = 2
MOST_DEATHS_IN_LOADING = 4
SHORT_LIFE_SECONDS = 10.0
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0


def delay_seconds(deaths: int) -> float:
    """Return how long to wait before the next start after so many deaths in a row; nothing after the first."""
    if deaths <= 1:
        return 0.0
    return min(FIRST_DELAY_SECONDS * 2.0 ** (deaths - 2), LONGEST_DELAY_SECONDS)


class Keeper:
    """Serves one variant. Requests wait while its runner starts; a start that fails fails them, and is not repeated
    before a while has passed.

    Args:
        changed: called when a runner became ready, or is so no more, or the last request in flight has ended.
    """

    def __init__(
        self, variant: Variant, *, fetch: Fetch, observer: Observer, limits: PoolLimits, changed: Callable[[], None]
    ) -> None:
        self.variant = variant
        self.in_flight = 0
        self._fetch = fetch
        self._observer = observer
        self._limits = limits
        self._changed = changed
        self._idle = asyncio.Event()
        self._idle.set()
        self._failures = 0
        self._next_start = 0.0
        self._runner: asyncio.Future[Runner] = asyncio.get_running_loop().create_future()
        self._life = self._begin()

    @property
    def runner(self) -> Runner | None:
        """The runner that answers now, if there is one."""
        runner = _result(self._runner)
        return None if runner is None or runner.dead.is_set() else runner

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Count a request as in flight: a keeper in use is neither evicted nor closed."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()
                self._changed()

    async def infer(self, request: Request, *, deadline: float) -> Inference:
        """Answer a request. If its runner dies it is sent again, unless it was what two runners were working on.

        Raises:
            QueueFull: too many requests wait for this variant.
            VariantNotReady: the runner cannot be started, or not by the deadline.
            DeadlineExceeded: the runner did not answer by the deadline.
            RunnerCrashed: two runners died of this request.
        """
        if self.in_flight > self._limits.max_queued:
            raise QueueFull(f"{self.variant.name!r} has {self._limits.max_queued} requests waiting: try again later.")
        deaths = 0
        while True:
            runner = await self.ready(deadline=deadline)
            try:
                return await runner.infer(request, deadline=deadline)
            except RunnerDied as death:
                deaths += death.suspect
                if deaths == MOST_DEATHS:
                    raise RunnerCrashed(
                        f"{deaths} runners of {self.variant.model}:{self.variant.version}@{self.variant.name} died "
                        "while they worked on this request: do not send it again as it is."
                    ) from None
                self._observer.retried(self.variant)

    async def ready(self, *, deadline: float) -> Runner:
        """Wait for a runner that can answer.

        Raises:
            VariantNotReady: it cannot be started, or not by the deadline.
        """
        if self._life.done() and time.monotonic() >= self._next_start:
            self._runner = asyncio.get_running_loop().create_future()
            self._life = self._begin()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.shield(self._current())
        except TimeoutError:
            raise VariantNotReady(
                f"{self.variant.name!r} of {self.variant.model!r} is still starting: try again later."
            ) from None

    async def close(self) -> None:
        """Wait for the requests in flight, then stop the runner."""
        await self._idle.wait()
        self._life.cancel()
        await asyncio.wait([self._life])
        last = _result(self._runner)
        if last is not None:
            await last.stop()
            self._changed()

    def _begin(self) -> asyncio.Task[None]:
        name = f"{self.variant.model}:{self.variant.version}@{self.variant.name}"
        life = asyncio.create_task(self._live(), name=f"runners of {name}")
        life.add_done_callback(self._ended)
        return life

    async def _live(self) -> None:
        """Start a runner, wait for its death, and again; ends with the error of a start that failed."""
        deaths = 0
        while True:
            runner = await self._start()
            self._failures = 0
            started = time.monotonic()
            self._current().set_result(runner)
            self._changed()
            status = await runner.buried()
            self._changed()
            log.error("runner %d of %r died with status %d: starting another", runner.pid, self.variant.name, status)
            deaths = deaths + 1 if time.monotonic() - started < SHORT_LIFE_SECONDS else 1
            self._observer.restarted(self.variant)
            await asyncio.sleep(delay_seconds(deaths))

    async def _start(self) -> Runner:
        """Start a runner, and another if it is killed while it loads.

        Raises:
            VariantNotReady: it refused the artifact, took too long, or several died in a row.
        """
        artifact = await self._fetch(self.variant)
        for deaths in range(1, MOST_DEATHS_IN_LOADING + 1):
            try:
                return await Runner.start(self.variant, artifact=artifact, limits=self._limits)
            except RunnerDied:
                log.error("a runner of %r died while it loaded: starting another", self.variant.name)  # noqa: TRY400
                self._observer.restarted(self.variant)
                await asyncio.sleep(delay_seconds(deaths))
        raise VariantNotReady(
            f"{MOST_DEATHS_IN_LOADING} runners of {self.variant.name!r} of {self.variant.model!r} died while they "
            "loaded it: it may need more memory than there is."
        )

    def _current(self) -> asyncio.Future[Runner]:
        """Return the future of the runner that answers: a new one once the last runner is dead."""
        last = _result(self._runner)
        if last is not None and last.dead.is_set():
            self._runner = asyncio.get_running_loop().create_future()
        return self._runner

    def _ended(self, life: asyncio.Task[None]) -> None:
        """Pass the error of a failed start on to whoever waits for it, and to who asks again too soon."""
        if life.cancelled():
            self._current().cancel()
            return
        error = life.exception()
        self._failures += 1
        self._next_start = time.monotonic() + delay_seconds(self._failures + 1)
        if error is not None:
            log.error("no runner for %r: %s", self.variant.name, error)
            self._current().set_exception(error)
            self._current().exception()
        self._changed()


def _result(future: asyncio.Future[Runner]) -> Runner | None:
    if not future.done() or future.cancelled() or future.exception() is not None:
        return None
    return future.result()
