"""The runners of one machine: loads variants for every gateway, connects the two, and stays out of their talk."""

import asyncio
import logging
import socket
from functools import partial
from pathlib import Path

from app.domain.errors import VariantNotReady
from app.domain.runners import HeldVariant
from app.domain.serving import Knobs, RunnerStatus, Servable, Tuning
from app.serving import local_sockets
from app.serving.footprint import STATUS_SECONDS, Told, ask, expected_bytes, is_idle, last_used_ns, taken_bytes
from app.serving.keeper import Fetch, Keeper, KeeperClosed
from app.serving.orders import Gateway
from app.serving.runner import Runner
from app.serving.terms import Observer, PoolLimits

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5

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
        self._gateways: set[Gateway] = set()
        self._admission = asyncio.Lock()
        self._change = asyncio.Event()
        self._starting: set[Keeper] = set()
        self._closing: dict[Keeper, asyncio.Task[None]] = {}
        self._closed = False

    def serve(self, end: socket.socket) -> None:
        """Serve one gateway until it hangs up."""
        gateway = Gateway(self, end, gone=self._gateways.discard)
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
            local_sockets.bind(listener, path)
            listener.listen(64)
            while True:
                try:
                    end, _ = await loop.sock_accept(listener)
                except OSError:
                    log.exception("no gateway can connect: trying again in %g s", AGAIN_SECONDS)
                    await asyncio.sleep(AGAIN_SECONDS)
                else:
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
                    found = await self._keeper(variant, knobs=knobs)
                    await found.ready()
                    done = knobs is None or found.knobs == knobs  # somebody else may have begun with others
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
        fresh = await self._admit(keeper.variant, knobs, beside=keeper)
        try:
            await fresh.ready()
        except BaseException:
            await asyncio.shield(self._close(fresh))
            raise
        if self._keepers.get(keeper.variant.key) is not keeper:
            await asyncio.shield(self._close(fresh))
            return False
        self._starting.discard(fresh)
        self._keepers[keeper.variant.key] = fresh
        await asyncio.shield(self._close(keeper))
        return True

    async def release(self, variant: Servable) -> None:
        """Drain the variant's runners and wait for their end. One that is not loaded stays so."""
        keeper = self._keepers.pop(variant.key, None)
        if keeper is not None:
            await asyncio.shield(self._close(keeper))

    def kill(self, serial: int) -> None:
        """End a runner at once; its keeper starts another, unless it is draining."""
        for keeper in (*self._all(), *self._closing):
            if (runner := keeper.find(serial)) is not None:
                log.error("runner %d of %s hangs, or cannot be understood: killed", runner.pid, keeper.variant.title)
                runner.shoot()

    async def statuses(self) -> tuple[RunnerStatus, ...]:
        """Ask every ready runner how it fares; one that does not say at once is left out."""
        told = await ask(tuple(self._keepers.values()))
        return tuple(status for statuses in told.values() for status in statuses)

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
        keepers, self._keepers = self._all(), {}
        for keeper in keepers:
            self._close(keeper)
        await asyncio.gather(*self._closing.values())
        gateways = list(self._gateways)
        for gateway in gateways:
            gateway.close()
        await asyncio.gather(*(gateway.ended() for gateway in gateways))
        await asyncio.gather(*self._closing.values())  # what an order began to drain when it was given up

    def _close(self, keeper: Keeper) -> asyncio.Task[None]:
        """Drain a keeper; that goes on to its end even if nobody waits for it any more."""
        if keeper not in self._closing:
            self._remember(keeper)
            self._starting.discard(keeper)
            self._closing[keeper] = asyncio.create_task(keeper.close())
            self._closing[keeper].add_done_callback(partial(self._on_closed, keeper))
        return self._closing[keeper]

    def _on_closed(self, keeper: Keeper, closing: asyncio.Task[None]) -> None:
        del closing
        del self._closing[keeper]
        self._wake()

    async def _keeper(self, variant: Servable, *, knobs: Knobs | None) -> Keeper:
        """Return the variant's keeper, making room for it if it is new.

        Raises:
            VariantNotReady: there is no room, or the host is closed.
        """
        if variant.key in self._keepers:
            return self._keepers[variant.key]
        return await self._admit(variant, knobs or self._limits.knobs, beside=None)

    async def _admit(self, variant: Servable, knobs: Knobs, *, beside: Keeper | None) -> Keeper:
        """Begin to load a variant as soon as it fits; until then unload what is idle, the least recently used first.

        Args:
            beside: what it will replace, which goes on answering until then; None if nothing.

        Returns:
            its keeper, or the one that somebody else has begun meanwhile.

        Raises:
            VariantNotReady: it would never fit, nothing became idle in time, or the host is closed.
        """
        await self._check_fits(variant, knobs, beside=beside)
        try:
            async with asyncio.timeout(self._limits.request_timeout_seconds):
                change = self._change
                while (keeper := await self._admitted(variant, knobs, beside=beside)) is None:
                    await self._give_way(expected_bytes(variant, knobs), change, beside=beside)
                    change = self._change
        except TimeoutError:
            raise VariantNotReady(
                f"{len(self._keepers)} variants are loaded and in use, so {variant.title} cannot be loaded: try again "
                "later, or raise OCTET_MAX_LOADED_VARIANTS or OCTET_RUNNERS_MEMORY_BYTES."
            ) from None
        return keeper

    async def _check_fits(self, variant: Servable, knobs: Knobs, *, beside: Keeper | None) -> None:
        needed = taken = expected_bytes(variant, knobs)
        if beside is not None:
            taken += taken_bytes(beside, (await ask([beside]))[beside])
        if taken > self._limits.total_memory_bytes:
            runners = "1 runner" if knobs.instances == 1 else f"{knobs.instances} runners"
            replaced = "" if beside is None else " beside the one that answers now"
            raise VariantNotReady(
                f"{variant.title} needs about {needed:,} bytes of memory for {runners}{replaced}, but all runners "
                f"together may take {self._limits.total_memory_bytes:,}: raise OCTET_RUNNERS_MEMORY_BYTES, ask for "
                "fewer instances, unload it first if it is loaded, or serve a smaller variant."
            )

    async def _admitted(self, variant: Servable, knobs: Knobs, *, beside: Keeper | None) -> Keeper | None:
        """Return the variant's keeper if it is there or there is room for it now.

        One at a time, so that no two take the same room; nobody waits in here for room.
        """
        async with self._admission:
            if self._closed:
                raise VariantNotReady("The service is stopping: send the request to another gateway.")
            if beside is None and variant.key in self._keepers:
                return self._keepers[variant.key]
            draining = sum(expected_bytes(keeper.variant, keeper.knobs) for keeper in self._closing)
            told = await ask(self._all())
            if not self._has_room(expected_bytes(variant, knobs) + draining, told, beside=beside) or self._closed:
                return None
            keeper = self._new_keeper(variant, knobs)
            if beside is None:
                self._keepers[variant.key] = keeper
            else:
                self._starting.add(keeper)
            return keeper

    def _has_room(self, needed: int, told: Told, *, beside: Keeper | None) -> bool:
        if beside is None and len(self._keepers) >= self._limits.max_loaded:
            return False
        taken = sum(taken_bytes(keeper, statuses) for keeper, statuses in told.items())
        return taken + needed <= self._limits.total_memory_bytes

    async def _give_way(self, needed: int, change: asyncio.Event, *, beside: Keeper | None) -> None:
        """Drain the idle variant that was used longest ago, or wait for a change: what drains already may be enough."""
        told = await ask(self._all())
        kept = [keeper for keeper in self._keepers.values() if keeper in told and keeper is not beside]
        idle = [keeper for keeper in kept if is_idle(keeper, told[keeper])]
        if idle and not self._has_room(needed, told, beside=beside):
            keeper = min(idle, key=lambda keeper: last_used_ns(keeper, told[keeper]))
            del self._keepers[keeper.variant.key]
            await asyncio.shield(self._close(keeper))
            return
        try:
            async with asyncio.timeout(STATUS_SECONDS):  # a runner does not tell when it becomes idle
                await change.wait()
        except TimeoutError:
            return

    def _all(self) -> tuple[Keeper, ...]:
        return *self._keepers.values(), *self._starting

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

    def _remember(self, keeper: Keeper) -> None:
        if keeper.tuning is not None:
            self._tunings[_measured_by(keeper.variant, keeper.knobs)] = keeper.tuning

    def _wake(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _tell(self) -> None:
        self._wake()
        for keeper in self._keepers.values():
            self._remember(keeper)
        self._observer.loaded(sum(len(keeper.runners) for keeper in self._keepers.values()))


def _measured_by(variant: Servable, knobs: Knobs) -> tuple[object, ...]:
    """Return all that a runner's measurement of itself depends on, on one machine."""
    return variant.artifact.sha256, variant.execution, variant.signature, knobs
