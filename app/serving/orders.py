"""One gateway as the host of runners sees it: what it orders, and the reply to each order."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

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
from app.domain.serving import Knobs, RunnerStatus, Servable
from app.serving.channel import Channel
from app.serving.runner import Runner
from app.wire import to_host

log = logging.getLogger(__name__)


class Host(Protocol):
    """Who carries the orders out."""

    async def acquire(self, variant: Servable, *, have: tuple[int, ...]) -> tuple[tuple[Runner, ...], bool]:
        """Return ready runners other than `have`, and whether more are starting."""

    async def prepare(self, variant: Servable, *, knobs: Knobs | None) -> None:
        """Load a variant."""

    async def release(self, variant: Servable) -> None:
        """Unload a variant."""

    def kill(self, serial: int) -> None:
        """End a runner."""

    async def statuses(self) -> tuple[RunnerStatus, ...]:
        """Return how every runner fares."""

    def held(self) -> tuple[HeldVariant, ...]:
        """Return which variants are kept."""


class Gateway:
    """One gateway's end: takes its orders, each as a task of its own."""

    def __init__(self, host: Host, end: socket.socket, *, gone: "Callable[[Gateway], None]") -> None:
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
        order.add_done_callback(partial(self._done, message.id))

    def _done(self, number: int, order: asyncio.Task[None]) -> None:
        """Forget an order; one that failed as nobody expected is denied, or its gateway would wait for ever."""
        self._orders.discard(order)
        if not order.cancelled() and (error := order.exception()) is not None:
            log.error("an order of a gateway failed", exc_info=error)
            message = f"The process that starts runners failed: {error}. Try again later."
            self._channel.send(Denied(id=number, code=VariantNotReady.code, message=message))

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
                return granted, _connected(runners)
            case Prepare():
                await self._host.prepare(message.variant, knobs=message.knobs)
            case Release():
                await self._host.release(message.variant)
            case Survey():
                runners_now = await self._host.statuses()
                return Overview(id=message.id, runners=runners_now, held=self._host.held()), ()
        return Done(id=message.id), ()


def _connected(runners: Iterable[Runner]) -> tuple[int, ...]:
    """Give every runner one more gateway; return the gateway's descriptors, or keep none."""
    descriptors: list[int] = []
    try:
        for runner in runners:
            descriptors += runner.connect()
    except OSError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return tuple(descriptors)
