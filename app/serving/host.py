"""The runners of one machine: loads variants for every gateway, connects the two, and stays out of their talk."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from app.domain.errors import OctetError, VariantNotReady
from app.domain.runners import (
    Acquire,
    Denied,
    Done,
    FromHost,
    Granted,
    HeldVariant,
    Kill,
    Overview,
    Prepare,
    Release,
    Survey,
    ToHost,
)
from app.domain.serving import Knobs, RunnerStatus, Servable, Tuning
from app.serving.channel import Channel
from app.serving.keeper import Fetch, Keeper, KeeperClosed
from app.serving.runner import Runner
from app.serving.terms import Observer, PoolLimits
from app.wire import to_host

log = logging.getLogger(__name__)

STATUS_SECONDS = 1.0
OVERHEAD_BYTES = 100 * 2**20
GROWTH = 3
"""A runner is expected to need `OVERHEAD_BYTES` for the engine and `GROWTH` times its artifact."""

_Key = tuple[str, int, str]


class RunnerHost:
    """Keeps at most so many variants, in at most so much memory; the least recently used idle one gives way.

    Args:
        fetch: brings an artifact to a local file. The runner itself checks its SHA-256.
        observer: is told about restarts and how many runners are ready.
    """

    def __init__(self, *, fetch: Fetch, observer: Observer, limits: PoolLimits) -> None:
        self._fetch = fetch
        self._observer = observer
        self._limits = limits
        self._keepers: dict[_Key, Keeper] = {}
        self._tunings: dict[tuple[object, ...], Tuning] = {}
        self._gateways: set[_Gateway] = set()
        self._admission = asyncio.Lock()
        self._change = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def serve(self, end: socket.socket) -> None:
        """Serve one gateway until it hangs up."""
        gateway = _Gateway(self, end, gone=self._gateways.discard)
        self._gateways.add(gateway)

    async def connect(self) -> socket.socket:
        """Return the other end of a new gateway, for one in this process."""
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.serve(ours)
        return theirs

    async def listen(self, path: Path) -> None:
        """Serve every gateway that connects to a socket at `path`, until cancelled."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.settimeout(0)
            listener.bind(os.fspath(path))
            listener.listen(64)
            while True:
                end, _ = await loop.sock_accept(listener)
                self.serve(end)

    async def acquire(self, variant: Servable, *, have: tuple[int, ...]) -> tuple[tuple[Runner, ...], bool]:
        """Return the variant's ready runners other than `have`, once there is one, and whether more are starting.

        If the variant is unloaded meanwhile, who has runners gets no more, and for who has none it is loaded again.

        Raises:
            VariantNotReady, StoreUnavailable, StoreFull: there will be none.
        """
        while True:
            keeper = await self._keeper(variant, knobs=None)
            try:
                found = await keeper.fresh(have=have)
            except KeeperClosed:
                if have:
                    return (), False
            else:
                return found, not keeper.complete

    async def prepare(self, variant: Servable, *, knobs: Knobs | None) -> None:
        """Load a variant, unless it is there as asked. Other knobs are loaded before what answers now is drained.

        Raises:
            VariantNotReady, StoreUnavailable, StoreFull: it cannot be loaded, and what answered before still does; or
                it was unloaded meanwhile.
        """
        done = False
        while not done:
            keeper = self._keepers.get(variant.key)
            try:
                if keeper is None or knobs is None or keeper.knobs == knobs:
                    await (await self._keeper(variant, knobs=knobs)).ready()
                    done = True
                else:
                    done = await self._replaced(keeper, knobs)
            except KeeperClosed:
                done = False
            if not done and variant.key not in self._keepers:
                raise VariantNotReady(f"{variant.title} was unloaded while it was loading: load it again.")

    async def _replaced(self, keeper: Keeper, knobs: Knobs) -> bool:
        """Start runners with other knobs, then drain the keeper's; return whether nobody else did so in between.

        Raises:
            VariantNotReady, StoreUnavailable, StoreFull: they cannot be started.
        """
        fresh = self._new_keeper(keeper.variant, knobs)
        try:
            await fresh.ready()
        except BaseException:
            await fresh.close()
            raise
        if self._keepers.get(keeper.variant.key) is not keeper:
            await asyncio.shield(self._close(fresh))
            return False
        self._keepers[keeper.variant.key] = fresh
        await asyncio.shield(self._close(keeper))
        return True

    async def release(self, variant: Servable) -> None:
        """Drain the variant's runners and wait for their end. One that is not loaded stays so."""
        keeper = self._keepers.pop(variant.key, None)
        if keeper is not None:
            await asyncio.shield(self._close(keeper))

    def kill(self, serial: int) -> None:
        """End a runner at once; its keeper starts another."""
        for keeper in self._keepers.values():
            if (runner := keeper.find(serial)) is not None:
                log.error("runner %d of %s hangs: killed", runner.pid, keeper.variant.title)
                runner.shoot()

    async def statuses(self) -> tuple[RunnerStatus, ...]:
        """Ask every ready runner how it fares; one that does not say at once is left out."""
        runners = [runner for keeper in self._keepers.values() for runner in keeper.runners]
        asked = await asyncio.gather(*(_status(runner) for runner in runners))
        return tuple(status for status in asked if status is not None)

    def held(self) -> tuple[HeldVariant, ...]:
        """Return what the host keeps."""
        return tuple(
            HeldVariant(
                model=keeper.variant.model,
                version=keeper.variant.version,
                variant=keeper.variant.name,
                pids=tuple(runner.pid for runner in keeper.runners),
            )
            for keeper in self._keepers.values()
        )

    async def aclose(self) -> None:
        """Start nothing more, drain every runner, and hang up."""
        self._closed = True
        self._tell()
        keepers, self._keepers = list(self._keepers.values()), {}
        for keeper in keepers:
            self._close(keeper)
        await asyncio.gather(*self._closing)
        gateways = list(self._gateways)
        for gateway in gateways:
            gateway.close()
        await asyncio.gather(*(gateway.ended() for gateway in gateways))

    def _close(self, keeper: Keeper) -> asyncio.Task[None]:
        """Drain a keeper; that goes on to its end even if nobody waits for it any more."""
        self._remember(keeper)
        closing = asyncio.create_task(keeper.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return closing

    async def _keeper(self, variant: Servable, *, knobs: Knobs | None) -> Keeper:
        """Return the variant's keeper, making room for it if it is new.

        Raises:
            VariantNotReady: there is no room, or the host is closed.
        """
        if variant.key not in self._keepers:
            async with self._admission:
                if variant.key not in self._keepers:
                    await self._make_room(variant)
                    if self._closed:
                        raise VariantNotReady("The service is stopping: send the request to another gateway.")
                    self._keepers[variant.key] = self._new_keeper(variant, knobs or self._limits.knobs)
        return self._keepers[variant.key]

    def _new_keeper(self, variant: Servable, knobs: Knobs) -> Keeper:
        return Keeper(
            variant,
            knobs=knobs,
            tuning=self._tunings.get(_measured_by(variant, knobs)),
            fetch=self._fetch,
            observer=self._observer,
            limits=self._limits,
            changed=self._tell,
        )

    async def _make_room(self, variant: Servable) -> None:
        """Unload the least recently used idle variants until one more fits; wait while all that are there are in use.

        Raises:
            VariantNotReady: it would not fit alone, or nothing became idle in time.
        """
        needed = OVERHEAD_BYTES + GROWTH * variant.artifact.size_bytes
        if needed > self._limits.total_memory_bytes:
            raise VariantNotReady(
                f"{variant.title} needs about {needed:,} bytes of memory, but all runners together may take "
                f"{self._limits.total_memory_bytes:,}: raise OCTET_RUNNERS_MEMORY_BYTES, or serve a smaller variant."
            )
        try:
            async with asyncio.timeout(self._limits.request_timeout_seconds):
                while not self._closed and not await self._has_room(needed):
                    await self._evict()
        except TimeoutError:
            raise VariantNotReady(
                f"{len(self._keepers)} variants are loaded and in use, so {variant.title} cannot be loaded: try again "
                "later, or raise OCTET_MAX_LOADED_VARIANTS or OCTET_RUNNERS_MEMORY_BYTES."
            ) from None

    async def _has_room(self, needed: int) -> bool:
        if len(self._keepers) >= self._limits.max_loaded:
            return False
        taken = sum(status.pss_bytes for status in await self.statuses())
        return taken + needed <= self._limits.total_memory_bytes

    async def _evict(self) -> None:
        """Drain the idle variant that was used longest ago, or wait until something changes."""
        statuses = await self.statuses()
        idle = [keeper for keeper in self._keepers.values() if _is_idle(keeper, statuses)]
        if idle:
            keeper = min(idle, key=lambda keeper: _last_used_ns(keeper, statuses))
            del self._keepers[keeper.variant.key]
            await asyncio.shield(self._close(keeper))
            return
        self._change.clear()
        try:
            async with asyncio.timeout(STATUS_SECONDS):  # a runner does not tell when it becomes idle
                await self._change.wait()
        except TimeoutError:
            return

    def _remember(self, keeper: Keeper) -> None:
        if keeper.tuning is not None:
            self._tunings[_measured_by(keeper.variant, keeper.knobs)] = keeper.tuning

    def _tell(self) -> None:
        self._change.set()
        for keeper in self._keepers.values():
            self._remember(keeper)
        self._observer.loaded(sum(len(keeper.runners) for keeper in self._keepers.values()))


class _Gateway:
    """One gateway's end: takes its orders, each as a task of its own."""

    def __init__(self, host: RunnerHost, end: socket.socket, *, gone: "Callable[[_Gateway], None]") -> None:
        self._host = host
        self._gone = gone
        self._orders: set[asyncio.Task[None]] = set()
        self._channel: Channel[ToHost] = Channel(end, decode=to_host, receive=self._receive, closed=self.close)

    def close(self) -> None:
        """Forget what it ordered, and hang up."""
        for order in self._orders:
            order.cancel()
        self._channel.close()
        self._gone(self)

    async def ended(self) -> None:
        """Wait until what it ordered is done or given up."""
        await asyncio.gather(*self._orders, return_exceptions=True)

    def _receive(self, message: ToHost, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(message, Kill):
            self._host.kill(message.serial)
            return
        order = asyncio.create_task(self._obey(message))
        self._orders.add(order)
        order.add_done_callback(self._orders.discard)

    async def _obey(self, message: Acquire | Prepare | Release | Survey) -> None:
        try:
            answer, descriptors = await self._answer(message)
        except OctetError as error:
            answer, descriptors = Denied(id=message.id, code=error.code, message=error.message), ()
        self._channel.send(answer, descriptors=descriptors)

    async def _answer(self, message: Acquire | Prepare | Release | Survey) -> tuple[FromHost, tuple[int, ...]]:
        match message:
            case Acquire():
                runners, more = await self._host.acquire(message.variant, have=message.have)
                granted = Granted(id=message.id, serials=tuple(runner.serial for runner in runners), more=more)
                return granted, tuple(descriptor for runner in runners for descriptor in runner.connect())
            case Prepare():
                await self._host.prepare(message.variant, knobs=message.knobs)
            case Release():
                await self._host.release(message.variant)
            case Survey():
                runners_now = await self._host.statuses()
                return Overview(id=message.id, runners=runners_now, held=self._host.held()), ()
        return Done(id=message.id), ()


async def _status(runner: Runner) -> RunnerStatus | None:
    try:
        async with asyncio.timeout(STATUS_SECONDS):
            return await runner.status()
    except TimeoutError:
        return None


def _of(keeper: Keeper, statuses: tuple[RunnerStatus, ...]) -> list[RunnerStatus]:
    return [status for status in statuses if (status.model, status.version, status.variant) == keeper.variant.key]


def _is_idle(keeper: Keeper, statuses: tuple[RunnerStatus, ...]) -> bool:
    """Whether all its runners said that they hold no request; one that is still starting is not idle."""
    told = _of(keeper, statuses)
    return keeper.complete and len(told) == len(keeper.runners) and not any(status.in_flight for status in told)


def _last_used_ns(keeper: Keeper, statuses: tuple[RunnerStatus, ...]) -> int:
    return max(keeper.used_ns, *(status.last_inference_ns for status in _of(keeper, statuses)))


def _measured_by(variant: Servable, knobs: Knobs) -> tuple[object, ...]:
    """Return all that a runner's measurement of itself depends on, on one machine."""
    return variant.artifact.sha256, variant.execution, variant.signature, knobs
