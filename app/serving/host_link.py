"""A gateway's connection to the host of runners: questions and their replies, and a new connection when it is lost."""

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from app.domain.errors import VariantNotReady, refusal_of
from app.domain.runners import Acquire, Denied, Done, FromHost, Granted, Kill, Overview, Prepare, Release, Survey
from app.serving.channel import Channel
from app.wire import from_host

log = logging.getLogger(__name__)

Question = Acquire | Prepare | Release | Survey
Reply = TypeVar("Reply", Granted, Done, Overview)
Connect = Callable[[], Awaitable[socket.socket]]
"""Connect to the host, or raise OSError."""

AGAIN_SECONDS = 0.1


class HostGone(Exception):
    """The host ended before it replied: it is started again."""


class HostLink:
    """Asks the host. It is connected on the first question, and again after it was lost."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._channel: Channel[FromHost] | None = None
        self._connecting = asyncio.Lock()

    def next_id(self) -> int:
        """Return a number for the next question."""
        return next(self._ids)

    async def ask(self, question: Question, kind: type[Reply]) -> tuple[Reply, list[int]]:
        """Ask, and wait for the reply and the descriptors that come with it.

        Raises:
            HostGone: it ended meanwhile.
            OctetError: it was denied.
        """
        channel = await self._connected()
        asked: asyncio.Future[tuple[Any, list[int]]] = asyncio.get_running_loop().create_future()
        self._asked[question.id] = asked
        channel.send(question)
        try:
            reply, descriptors = await asked
        finally:
            self._asked.pop(question.id, None)
        assert isinstance(reply, kind)  # noqa: S101 - the host answers what it was asked
        return reply, descriptors

    def tell(self, message: Kill) -> None:
        """Tell the host something, if it is there."""
        if self._channel is not None:
            self._channel.send(message)

    def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            self._channel.close()
        self._on_gone()

    async def _connected(self) -> Channel[FromHost]:
        async with self._connecting:
            while self._channel is None:
                try:
                    end = await self._connect()
                except OSError:
                    await asyncio.sleep(AGAIN_SECONDS)
                else:
                    self._channel = Channel(end, decode=from_host, receive=self._receive, closed=self._on_gone)
            return self._channel

    def _receive(self, message: FromHost, descriptors: list[int]) -> None:
        asked = self._asked.get(message.id)
        if asked is None or asked.done():
            for descriptor in descriptors:
                os.close(descriptor)
        elif isinstance(message, Denied):
            asked.set_exception(refusal_of(message.code, message.message, otherwise=VariantNotReady))
        else:
            asked.set_result((message, descriptors))

    def _on_gone(self) -> None:
        self._channel = None
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(HostGone())
                asked.exception()  # seen: whoever waited may be gone
