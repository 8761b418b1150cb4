"""The load generator: one thread, epoll and raw sockets; it checks every answer and costs little processor time.

Knows nothing of models or servers: a `Call` brings its bytes, and says of an answer whether it is right.
"""

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from benchmarks.serving import http

_CHUNK = 256 * 1024
_LOOK_SECONDS = 0.05
_PAUSE_AFTER_REFUSAL_SECONDS = 0.02


class Outcome(IntEnum):
    """What became of a request."""

    RIGHT = 0
    WRONG = 1
    """Answered 200, but not with what the model says."""
    REFUSED = 2
    """503 or 429: the server says that it is full."""
    LATE = 3
    """504: the server gave up at the request's own deadline."""
    FAILED = 4
    """Any other status."""
    BROKEN = 5
    """The connection could not be made, broke, or nothing came for too long."""
    UNSENT = 6
    """Nobody was free to send it before its deadline passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to be sent as often as wanted.

    Attributes:
        check: whether an answer is right; asked for answers of every status, so that a refusal may be the right one.
    """

    head: bytes
    body: bytes
    check: Callable[[http.Answer], bool]


@dataclass(frozen=True, slots=True)
class Done:
    """One request's times, in seconds of the monotonic clock. `due` is when it should have been sent."""

    due: float
    ended: float
    outcome: Outcome

    @property
    def latency(self) -> float:
        return self.ended - self.due


class _Connection:
    """One socket with at most one request on its way."""

    __slots__ = ("buffer", "call", "due", "left", "sent", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=2)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)
        self.buffer = bytearray()
        self.call: Call | None = None
        self.due = 0.0
        self.sent = 0.0
        self.left: list[memoryview] = []

    def begin(self, call: Call, *, due: float, now: float) -> None:
        self.call, self.due, self.sent = call, due, now
        self.buffer.clear()
        self.left = [memoryview(call.head), memoryview(call.body)]
        self.push()

    def push(self) -> None:
        """Send as much as the socket takes."""
        while self.left:
            try:
                sent = self.socket.sendmsg(self.left)
            except BlockingIOError:
                return
            while self.left and sent >= len(self.left[0]):
                sent -= len(self.left.pop(0))
            if self.left:
                self.left[0] = self.left[0][sent:]

    def pull(self) -> http.Answer | None:
        """Read what has come; return the answer once it is whole."""
        try:
            data = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionError("The server closed the connection.")
        if not self.buffer and (whole := http.answer(data)):
            return whole
        self.buffer += data
        return http.answer(self.buffer)


class Load:
    """Sends calls to a port of this machine over at most `connections` kept-alive connections.

    Args:
        on_done: told of every request as it ends.
        timeout_seconds: when an answer is no longer waited for.
    """

    def __init__(
        self,
        port: int,
        calls: Sequence[Call],
        *,
        connections: int,
        on_done: Callable[[Done], None],
        timeout_seconds: float = 10.0,
    ) -> None:
        self._port, self._calls, self._most, self._on_done = port, calls, connections, on_done
        self._timeout = timeout_seconds
        self._epoll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._number = 0
        self._looked = 0.0
        self._no_connection_before = 0.0

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._open.values()):
            self._drop(connection)
        self._epoll.close()

    def closed_loop(self, *, seconds: float | None = None, requests: int | None = None) -> tuple[float, float]:
        """Keep every connection busy for so long, or until so many were sent; return when it began and ended."""
        began = time.monotonic()
        stop = began + seconds if seconds is not None else float("inf")
        left = requests if requests is not None else -1
        while (now := time.monotonic()) < stop and left != 0:
            while left != 0 and self._send(now, now=now):
                left -= 1
            self._turn(_LOOK_SECONDS)
        ended = time.monotonic()
        self._drain()
        return began, ended

    def open_loop(self, schedule: Sequence[float], *, give_up_seconds: float) -> float:
        """Send one request at every moment of the schedule, however slow the answers are; return when it began.

        A request that finds no free connection waits for one, and is never sent once `give_up_seconds` have passed.
        Latency counts from the moment it was due.
        """
        began = time.monotonic()
        moments = iter(schedule)
        coming = next(moments, None)
        waiting: deque[float] = deque()
        while coming is not None or waiting:
            now = time.monotonic()
            while coming is not None and began + coming <= now:
                waiting.append(began + coming)
                coming = next(moments, None)
            self._send_waiting(waiting, now=now, give_up_seconds=give_up_seconds)
            self._turn(_LOOK_SECONDS if coming is None else min(_LOOK_SECONDS, began + coming - time.monotonic()))
        self._drain()
        return began

    def _send_waiting(self, waiting: deque[float], *, now: float, give_up_seconds: float) -> None:
        while waiting:
            if now - waiting[0] > give_up_seconds:
                self._on_done(Done(waiting.popleft(), now, Outcome.UNSENT))
            elif self._send(waiting[0], now=now):
                waiting.popleft()
            else:
                return

    def _send(self, due: float, *, now: float) -> bool:
        """Send the next call if a connection is free or can be made; a refused connection is a request that broke."""
        if not self._idle and (len(self._open) >= self._most or now < self._no_connection_before):
            return False
        try:
            connection = self._idle.pop() if self._idle else self._connect()
        except OSError:
            self._no_connection_before = now + _PAUSE_AFTER_REFUSAL_SECONDS
            self._on_done(Done(due, time.monotonic(), Outcome.BROKEN))
            return True
        self._begin(connection, due=due)
        return True

    def _connect(self) -> _Connection:
        connection = _Connection(self._port)
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
        return connection

    def _begin(self, connection: _Connection, *, due: float) -> None:
        call = self._calls[self._number % len(self._calls)]
        self._number += 1
        try:
            connection.begin(call, due=due, now=time.monotonic())
        except OSError:
            self._end(connection, Outcome.BROKEN, keep=False)
            return
        if connection.left:
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _turn(self, seconds: float) -> None:
        # epoll's own timeout is in whole milliseconds, too coarse for a schedule
        select.select([self._epoll.fileno()], [], [], max(0.0, seconds))
        for number, events in self._epoll.poll(0):
            self._serve(self._open[number], events)
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked = now
            self._drop_silent(now)

    def _serve(self, connection: _Connection, events: int) -> None:
        if connection.call is None:  # an idle connection speaks only to say goodbye
            self._idle.remove(connection)
            self._drop(connection)
            return
        try:
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read(connection)
            elif events & select.EPOLLOUT:
                connection.push()
                if not connection.left:
                    self._epoll.modify(connection.socket.fileno(), select.EPOLLIN)
        except (OSError, http.AnswerMalformed):
            self._end(connection, Outcome.BROKEN, keep=False)

    def _read(self, connection: _Connection) -> None:
        found = connection.pull()
        if found is not None and connection.call is not None:
            # an answer that comes before the request is sent leaves the connection in no state to be used again
            keep = not found.closes and not connection.left
            self._end(connection, _outcome(connection.call, found), keep=keep)

    def _end(self, connection: _Connection, outcome: Outcome, *, keep: bool) -> None:
        done = Done(connection.due, time.monotonic(), outcome)
        connection.call, connection.left = None, []
        if keep:
            self._idle.append(connection)
        else:
            self._drop(connection)
        self._on_done(done)

    def _drop(self, connection: _Connection) -> None:
        number = connection.socket.fileno()
        self._epoll.unregister(number)
        del self._open[number]
        connection.socket.close()

    def _drop_silent(self, now: float) -> None:
        for connection in list(self._open.values()):
            if connection.call is not None and now - connection.sent > self._timeout:
                self._end(connection, Outcome.BROKEN, keep=False)

    def _drain(self) -> None:
        while any(connection.call is not None for connection in self._open.values()):
            self._turn(_LOOK_SECONDS)


def _outcome(call: Call, found: http.Answer) -> Outcome:
    if call.check(found):
        return Outcome.RIGHT
    if found.status == http.OK:
        return Outcome.WRONG
    if found.status in http.FULL:
        return Outcome.REFUSED
    return Outcome.LATE if found.status == http.TIMED_OUT else Outcome.FAILED


def opened(
    port: int, calls: Sequence[Call], *, connections: int, done: list[Done], timeout_seconds: float = 10.0
) -> Load:
    """Return a load whose finished requests are appended to `done`."""
    return Load(port, calls, connections=connections, on_done=done.append, timeout_seconds=timeout_seconds)


def moments(done: Sequence[Done], *, good_within: float) -> Iterator[tuple[float, bool]]:
    """Yield when each request was due, and whether it was answered rightly and within so many seconds."""
    for one in done:
        yield one.due, one.outcome is Outcome.RIGHT and one.latency <= good_within
