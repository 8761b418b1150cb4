"""The runners of one gateway process: at most so many, each started on first use, the least used gives way."""

import asyncio
import time
from collections import OrderedDict

from app.domain.errors import VariantNotReady
from app.domain.preprocessing import ImagePreprocessing
from app.domain.variants import Variant
from app.serving.keeper import Fetch, Keeper
from app.serving.requests import check, check_own_limit
from app.serving.runner import RunnerDied
from app.serving.terms import Arrays, EncodedImage, Inference, LoadedVariant, Observer, PoolLimits, RunnerMemory

MEMORY_TIMEOUT_SECONDS = 1.0

_Key = tuple[str, int, str]


class RunnerPool:
    """Loads variants and answers requests with them.

    Args:
        fetch: brings an artifact to a local file. The runner itself checks its SHA-256.
        observer: is told about restarts, retries and how many runners are ready.
    """

    def __init__(self, *, fetch: Fetch, observer: Observer, limits: PoolLimits) -> None:
        self._fetch = fetch
        self._observer = observer
        self._limits = limits
        self._keepers: OrderedDict[_Key, Keeper] = OrderedDict()  # the least recently used first
        self._admission = asyncio.Lock()
        self._change = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._told = 0

    async def infer(
        self, variant: Variant, inputs: Arrays | EncodedImage, *, preprocessing: ImagePreprocessing | None = None
    ) -> Inference:
        """Answer one request with `variant`, loading it first if need be.

        Raises:
            SignatureMismatch, BatchTooLarge, RequestInvalid, ImageInvalid: the request does not fit.
            VariantNotReady, QueueFull, DeadlineExceeded, RunnerCrashed: it fits, but got no answer.
        """
        request = check(
            variant.signature, inputs, preprocessing=preprocessing, max_batch_size=self._limits.max_batch_size
        )
        check_own_limit(variant, request)
        deadline = time.monotonic() + self._limits.request_timeout_seconds
        keeper = await self._keeper(variant, deadline=deadline)
        with keeper.used():
            return await keeper.infer(request, deadline=deadline)

    async def load(self, variant: Variant) -> None:
        """Start the variant's runner, unless it is there.

        Raises:
            VariantNotReady: it cannot be started.
        """
        deadline = time.monotonic() + self._limits.start_timeout_seconds + self._limits.request_timeout_seconds
        keeper = await self._keeper(variant, deadline=deadline)
        with keeper.used():
            await keeper.ready(deadline=deadline)

    async def unload(self, variant: Variant) -> None:
        """Stop the variant's runner once its requests in flight are answered. One that is not loaded stays so."""
        if _key(variant) in self._keepers:
            await self._close(_key(variant))

    def ready(self, variant: Variant) -> bool:
        """Whether a request would be answered without waiting for a runner to start."""
        keeper = self._keepers.get(_key(variant))
        return keeper is not None and keeper.runner is not None

    def loaded(self) -> tuple[LoadedVariant, ...]:
        """Return what the pool keeps, the least recently used first."""
        return tuple(
            LoadedVariant(
                variant=keeper.variant,
                pid=None if keeper.runner is None else keeper.runner.pid,
                in_flight=keeper.in_flight,
            )
            for keeper in self._keepers.values()
        )

    async def memory(self) -> list[RunnerMemory]:
        """Ask every ready runner how much memory it takes; one that does not say at once is left out."""
        measured = await asyncio.gather(*(self._memory_of(keeper) for keeper in self._keepers.values()))
        return [memory for memory in measured if memory is not None]

    async def aclose(self) -> None:
        """Take no more requests, answer those in flight, and stop every runner."""
        self._closed = True
        self._tell_change()
        for key in list(self._keepers):
            self._begin_close(key)
        await asyncio.gather(*self._closing)

    async def _close(self, key: _Key) -> None:
        """Take a keeper out and stop it; that goes on to its end even if nobody waits for it any more."""
        await asyncio.shield(self._begin_close(key))

    def _begin_close(self, key: _Key) -> asyncio.Task[None]:
        closing = asyncio.create_task(self._keepers.pop(key).close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return closing

    async def _memory_of(self, keeper: Keeper) -> RunnerMemory | None:
        runner = keeper.runner
        if runner is None:
            return None
        try:
            async with asyncio.timeout(MEMORY_TIMEOUT_SECONDS):
                use = await runner.memory()
        except (TimeoutError, RunnerDied):
            return None
        return RunnerMemory(variant=keeper.variant, pss_bytes=use.pss_bytes, peak_bytes=use.peak_bytes)

    async def _keeper(self, variant: Variant, *, deadline: float) -> Keeper:
        """Return the variant's keeper. Nothing may be awaited between this and its use: it could be evicted."""
        keeper = self._keepers.get(_key(variant))
        if keeper is None:
            return await self._admit(variant, deadline=deadline)
        self._keepers.move_to_end(_key(variant))
        return keeper

    async def _admit(self, variant: Variant, *, deadline: float) -> Keeper:
        """Make room for one more keeper, waiting for one to be idle if all are in use.

        Raises:
            VariantNotReady: none was idle by the deadline, or the pool is closed.
        """
        try:
            async with asyncio.timeout(deadline - time.monotonic()), self._admission:
                while not self._closed and not self._has_room_for(variant):
                    await self._evict()
        except TimeoutError:
            raise VariantNotReady(
                f"All {self._limits.max_loaded} runners are in use, so {variant.name!r} of {variant.model!r} cannot be "
                "loaded: try again later, or allow more loaded variants."
            ) from None
        if self._closed:
            raise VariantNotReady("The service is stopping: send the request to another gateway.")
        if _key(variant) not in self._keepers:
            self._keepers[_key(variant)] = self._new_keeper(variant)
        return self._keepers[_key(variant)]

    def _has_room_for(self, variant: Variant) -> bool:
        return _key(variant) in self._keepers or len(self._keepers) < self._limits.max_loaded

    def _new_keeper(self, variant: Variant) -> Keeper:
        return Keeper(
            variant, fetch=self._fetch, observer=self._observer, limits=self._limits, changed=self._tell_change
        )

    async def _evict(self) -> None:
        """Stop the least recently used keeper without requests in flight, or wait until something changes."""
        for key, keeper in self._keepers.items():
            if keeper.in_flight == 0:
                await self._close(key)
                return
        self._change.clear()
        await self._change.wait()

    def _tell_change(self) -> None:
        self._change.set()
        count = sum(keeper.runner is not None for keeper in self._keepers.values())
        if count != self._told:
            self._told = count
            self._observer.loaded(count)


def _key(variant: Variant) -> _Key:
    return variant.model, variant.version, variant.name
