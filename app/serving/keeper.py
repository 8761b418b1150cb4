"""Keep one variant answering: start its runners, start each again when it dies, drain them all in the end."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from pathlib import Path

from app.domain.errors import OctetError, VariantNotReady
from app.domain.runners import Load
from app.domain.serving import Knobs, Servable, Tuning
from app.serving.runner import Runner, RunnerDied
from app.serving.terms import Observer, PoolLimits

log = logging.getLogger(__name__)

Fetch = Callable[[Servable], Awaitable[Path]]
"""Bring a variant's artifact to a file on this machine; return its absolute path."""

MOST_DEATHS_IN_LOADING = 4
SHORT_LIFE_SECONDS = 10.0
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0


def delay_seconds(deaths: int) -> float:
    """Return how long to wait before the next start after so many deaths in a row; nothing after the first."""
    if deaths <= 1:
        return 0.0
    return min(FIRST_DELAY_SECONDS * 2.0 ** (deaths - 2), LONGEST_DELAY_SECONDS)


class KeeperClosed(Exception):
    """The variant is unloaded, or other runners have replaced these."""


class Keeper:
    """Runs one variant's runners. A start that fails fails those who wait, and is not repeated at once.

    It is repeated later: by itself while another runner answers, otherwise when somebody asks.

    Args:
        tuning: what an earlier runner of the artifact measured; None if none did.
        changed: called when a runner became ready, or is so no more.

    Attributes:
        used_ns: when a gateway last asked for it, on the monotonic clock.
    """

    def __init__(
        self,
        variant: Servable,
        *,
        knobs: Knobs,
        tuning: Tuning | None,
        fetch: Fetch,
        observer: Observer,
        limits: PoolLimits,
        changed: Callable[[], None],
    ) -> None:
        self.variant = variant
        self.knobs = knobs
        self.tuning = tuning
        self.used_ns = time.monotonic_ns()
        self._fetch = fetch
        self._observer = observer
        self._limits = limits
        self._changed = changed
        self._change = asyncio.Event()
        self._runners: dict[int, Runner] = {}
        self._measuring = asyncio.Lock()
        self._closed = False
        self._failures = 0
        self._next_start = 0.0
        self._error: OctetError | None = None
        self._lives = [self._begin(instance) for instance in range(knobs.instances)]

    @property
    def runners(self) -> tuple[Runner, ...]:
        """The runners that answer now."""
        return tuple(runner for runner in self._runners.values() if not runner.dead.is_set() and not runner.draining)

    @property
    def complete(self) -> bool:
        """Whether all its runners answer."""
        return len(self.runners) == self.knobs.instances

    @property
    def settled(self) -> bool:
        """Whether every one of its runners answers, or failed to start: none is on its way."""
        answering = {runner.load.instance for runner in self.runners}
        return all(life.done() or instance in answering for instance, life in enumerate(self._lives))

    async def fresh(self, *, have: Collection[int]) -> tuple[Runner, ...]:
        """Wait for ready runners other than those; return all of them.

        As long as one of those answers, a start that failed is waited out: it is repeated.

        Raises:
            VariantNotReady, StoreUnavailable, StoreFull: none can be started.
            KeeperClosed: none will be.
        """
        self.used_ns = time.monotonic_ns()
        self._start_again()
        while not (found := tuple(runner for runner in self.runners if runner.serial not in have)):
            if not self.runners:
                self._check_hope()
            await self._wait()
        return found

    async def ready(self) -> None:
        """Wait until all its runners answer.

        Raises:
            VariantNotReady, StoreUnavailable, StoreFull: one cannot be started.
            KeeperClosed: none will be.
        """
        self.used_ns = time.monotonic_ns()
        self._start_again()
        while not self.complete:
            self._check_hope()
            await self._wait()

    async def close(self) -> None:
        """Start no more runners, and drain those that are there."""
        self._closed = True
        self._wake()
        for life in self._lives:
            life.cancel()
        await asyncio.wait(self._lives)
        grace = self._limits.request_timeout_seconds
        await asyncio.gather(*(runner.drain(grace_seconds=grace) for runner in self._runners.values()))
        self._tell()

    def find(self, serial: int) -> Runner | None:
        """Return the runner of that serial number, if it is one of these."""
        return next((runner for runner in self._runners.values() if runner.serial == serial), None)

    async def _wait(self) -> None:
        """Wait for any change.

        Raises:
            KeeperClosed: there will be none.
        """
        if self._closed:
            raise KeeperClosed
        await self._change.wait()

    def _check_hope(self) -> None:
        """Check that what was started may still be ready.

        Raises:
            VariantNotReady, StoreUnavailable, StoreFull: a start failed.
        """
        if self._error is not None and not self._closed:
            raise self._error

    def _start_again(self) -> None:
        """Begin anew what a failed start ended, unless that was only just."""
        if time.monotonic() >= self._next_start:
            self._begin_again()

    def _repeat(self) -> None:
        """Begin anew what a failed start ended, though nobody asked: others of its runners answer, and are too few."""
        if any(not life.done() for life in self._lives):
            self._begin_again()

    def _begin_again(self) -> None:
        if self._closed:
            return
        for instance, life in enumerate(self._lives):
            if life.done():
                self._error = None
                self._lives[instance] = self._begin(instance)

    def _begin(self, instance: int) -> asyncio.Task[None]:
        life = asyncio.create_task(self._live(instance), name=f"runner {instance} of {self.variant.title}")
        life.add_done_callback(self._ended)
        return life

    async def _live(self, instance: int) -> None:
        """Start a runner, wait for its death, and again; ends with the error of a start that failed."""
        deaths = 0
        while True:
            runner = await self._start(instance)
            self._failures = 0
            self._runners[instance] = runner
            self._tell()
            status = await runner.buried()
            lived = time.monotonic() - runner.started
            del self._runners[instance]
            self._tell()
            log.error("runner %d of %s died with status %d: starting another", runner.pid, self.variant.title, status)
            deaths = deaths + 1 if lived < SHORT_LIFE_SECONDS else 1
            self._observer.restarted(self.variant)
            await asyncio.sleep(delay_seconds(deaths))

    async def _start(self, instance: int) -> Runner:
        """Start a runner. One measures for all: several at a time would measure each other.

        Raises:
            VariantNotReady: as in `_start_one`.
        """
        if self.tuning is not None:
            return await self._start_one(instance)
        async with self._measuring:
            runner = await self._start_one(instance)
            self.tuning = runner.tuning
            return runner

    async def _start_one(self, instance: int) -> Runner:
        """Start a runner, and another if it is killed while it loads.

        Raises:
            VariantNotReady: it refused the artifact, took too long, or several died in a row.
        """
        load = self._load(instance, await self._fetch(self.variant))
        for deaths in range(1, MOST_DEATHS_IN_LOADING + 1):
            try:
                return await Runner.start(load, limits=self._limits)
            except RunnerDied:
                log.error("a runner of %s died while it loaded: starting another", self.variant.title)  # noqa: TRY400
                self._observer.restarted(self.variant)
                await asyncio.sleep(delay_seconds(deaths))
                load = replace(load, tuning=self.tuning)
        raise VariantNotReady(
            f"{MOST_DEATHS_IN_LOADING} runners of {self.variant.title} died while they loaded it: it may need more "
            "memory than there is."
        )

    def _load(self, instance: int, path: Path) -> Load:
        return Load(
            variant=self.variant,
            instance=instance,
            path=str(path),
            knobs=self.knobs,
            threads=self.knobs.threads or self._limits.threads,
            max_batch_size=_joinable_rows(self.variant, self._limits),
            tuning=self.tuning,
            max_answer_bytes=self._limits.max_answer_bytes,
        )

    def _ended(self, life: asyncio.Task[None]) -> None:
        """Keep the error of a failed start for whoever waits for it, and for who asks again too soon."""
        if life.cancelled():
            return
        error = life.exception()
        self._failures += 1
        delay = delay_seconds(self._failures + 1)
        self._next_start = time.monotonic() + delay
        asyncio.get_running_loop().call_later(delay, self._repeat)
        if error is not None:
            log.error("no runner for %s: %s", self.variant.title, error)
            self._error = error if isinstance(error, OctetError) else VariantNotReady(f"No runner started: {error}")
        self._tell()

    def _tell(self) -> None:
        self._wake()
        self._changed()

    def _wake(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


def _joinable_rows(variant: Servable, limits: PoolLimits) -> int:
    """Return how many rows of several requests may run together: one where neighbours matter or batches are fixed."""
    specs = (*variant.signature.inputs, *variant.signature.outputs)
    fixed = any(spec.batch_axis is None or spec.shape[spec.batch_axis] is not None for spec in specs)
    return 1 if fixed else min(variant.max_batch_size or limits.max_batch_size, limits.max_batch_size)
