"""One variant as a gateway sees it: memory for its requests, lines to its runners, and a second try when one dies."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

from app.domain.errors import DeadlineExceeded, OctetError, QueueFull, RunnerCrashed, VariantNotReady, WaitTooLong
from app.domain.serving import Servable
from app.serving.line import Line, LineClosing, LineLost, Question
from app.serving.segments import Segment, SegmentPool
from app.serving.terms import Inference, Observer, PoolLimits

MOST_DEATHS = 2
SMALLEST_OUTPUTS = 4096
MOST_OUTPUTS = 2**20
"""An answer beyond it gets memory of its own: room for it in every segment would make every request slower."""
HANGS_AFTER = 0.9
"""Of the time that a request may take: a runner that has answered nothing for so long is killed. Less than all of it,
for a request is sent a little after its time begins."""
WEDGED_AFTER = 1.9
"""Of that time: a runner that has had one request for so long is killed though it answers others. It began before the
request's time was over, and has computed for longer than any request may take."""

log = logging.getLogger(__name__)

Connect = Callable[["Desk"], Awaitable[tuple[list[Line], bool]]]
"""Wait for lines to ready runners to which the desk has none yet; return them, and whether more are on their way."""


class Desk:
    """Answers one variant's requests with whichever of its runners will be the soonest.

    Attributes:
        in_flight: requests that wait for a runner or for its answer.
        idle: set while there are none.
    """

    def __init__(
        self,
        variant: Servable,
        *,
        connect: Connect,
        hangs: Callable[[Line], None],
        observer: Observer,
        limits: PoolLimits,
    ) -> None:
        self.variant = variant
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.segments = SegmentPool(dropped=self._detach)
        self.segments.keeps = False
        self.most_output_bytes = SMALLEST_OUTPUTS
        self.lines: list[Line] = []
        self._connect = connect
        self._hangs = hangs
        self._observer = observer
        self._limits = limits
        self._connecting: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._watching: asyncio.TimerHandle | None = None

    async def answer(self, question: Question) -> Inference:
        """Answer a question by its deadline. If its runner dies it is sent again, unless two died of it.

        Raises:
            QueueFull: too many requests wait, or it would wait beyond its deadline.
            VariantNotReady: no runner can be started, or not in time.
            DeadlineExceeded: no answer in time.
            RunnerCrashed: two runners died while they computed it.
        """
        self.check_wait(question.deadline_ns)
        self.in_flight += 1
        self.idle.clear()
        try:
            async with asyncio.timeout_at(_loop_time(question.deadline_ns)):
                return await self._answer(question)
        except TimeoutError:
            raise self._too_late() from None
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    def check_wait(self, deadline_ns: int) -> None:
        """Check that a request which comes now is worth waiting: cheap, so that it can be asked before a body is read.

        Raises:
            QueueFull: too many wait already.
            WaitTooLong: the wait is longer than the request has time.
        """
        if self.in_flight >= self._limits.max_queued:
            raise QueueFull(
                f"{self.variant.title} has {self._limits.max_queued} requests waiting, the limit: try again later.",
                retry_after_seconds=self._retry_after(0.0),
            )
        wait, left = self._wait_seconds(), (deadline_ns - time.monotonic_ns()) / 1e9
        if wait > left:
            raise WaitTooLong(
                f"{self.variant.title} would begin with the request in about {wait:.2g} s, but it has "
                f"{max(left, 0):.2g} s: try again later, or allow more time.",
                retry_after_seconds=self._retry_after(left),
            )

    def close(self) -> None:
        """Hang up every line."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._watching is not None:
            self._watching.cancel()
        for line in list(self.lines):
            line.close()
        self.segments.close()

    def left(self, segment: Segment) -> None:
        """Take back a segment that a runner needs no more."""
        self.segments.leave(segment)

    def overflowed(self, size_bytes: int) -> None:
        """Leave so much room behind inputs from now on, unless it is too much for every request to carry."""
        if size_bytes <= MOST_OUTPUTS:
            self.most_output_bytes = max(self.most_output_bytes, size_bytes)

    def mistrusted(self, line: Line) -> None:
        """Have a runner ended that nobody can talk with."""
        self._hangs(line)

    def changed(self, line: Line) -> None:
        """Look for another line in place of one that is lost. Without any, who needs one asks for it himself.

        One that is closing is not replaced, or a variant would be loaded again because it is unloaded. Without lines
        no memory is kept: the variant may never be asked again.
        """
        if line.dead and line in self.lines:
            self.lines.remove(line)
        if not self.lines:
            self.segments.keeps = False
            self.segments.trim()
        if line.dead and not line.closing and self._soonest() is not None:
            self._begin_connecting()

    async def _answer(self, question: Question) -> Inference:
        deaths = 0
        while True:
            line = self._soonest() or await self._connected()
            try:
                return await line.ask(question, alone=deaths > 0)
            except LineClosing:
                continue
            except LineLost as lost:
                deaths += lost.suspect
                if deaths == MOST_DEATHS:
                    raise RunnerCrashed(
                        f"{deaths} runners of {self.variant.title} died while they worked on this request: do not send "
                        "it again as it is."
                    ) from None
                self._observer.retried(self.variant)

    def _soonest(self) -> Line | None:
        return min((line for line in self.lines if line.open), key=lambda line: line.in_flight, default=None)

    async def _connected(self) -> Line:
        """Wait for a line.

        Raises:
            VariantNotReady: there will be none.
        """
        while (line := self._soonest()) is None:
            await asyncio.shield(self._begin_connecting())
        return line

    def _begin_connecting(self) -> asyncio.Future[None]:
        """Get lines in the background; return what is done when the first of them is there."""
        if self._connecting is None or self._connecting.done() or self._first is None:
            self._first = asyncio.get_running_loop().create_future()
            self._connecting = asyncio.create_task(self._get_lines(), name=f"lines to {self.variant.title}")
            self._connecting.add_done_callback(self._stopped_connecting)
        elif self._first.done() and self._soonest() is None:
            self._first = asyncio.get_running_loop().create_future()
        return self._first

    async def _get_lines(self) -> None:
        more = True
        while more:
            try:
                lines, more = await self._connect(self)
            except OctetError as error:
                log.warning("no line to %s: %s", self.variant.title, error)
                self._tell(error)
                return
            self.lines += lines
            self.segments.keeps = bool(self.lines)
            if self._soonest() is not None or not more:
                self._tell(None)

    def _stopped_connecting(self, task: asyncio.Task[None]) -> None:
        """Tell who waits when it ended with a failure that nobody expected; the next request tries again."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("no line to %s", self.variant.title, exc_info=error)
            self._tell(VariantNotReady(f"No line to a runner of {self.variant.title}: {error}. Try again later."))

    def _tell(self, error: OctetError | None) -> None:
        if self._first is None or self._first.done():
            return
        if error is None:
            self._first.set_result(None)
        else:
            self._first.set_exception(error)
            self._first.exception()  # seen: nobody may wait

    def _too_late(self) -> OctetError:
        for line in list(self.lines):
            if line.stuck_seconds() >= HANGS_AFTER * self._limits.request_timeout_seconds:
                self._hangs(line)
        self._watch()
        if self._soonest() is None:
            return VariantNotReady(f"{self.variant.title} is still starting: try again later.")
        return DeadlineExceeded(
            f"{self.variant.title} did not answer in the time that the request had: send fewer rows, or fewer "
            "requests at a time, or allow more time."
        )

    def _watch(self) -> None:
        """Look again later whether a runner still has what its caller has given up."""
        if self._watching is None:
            later = self._limits.request_timeout_seconds
            self._watching = asyncio.get_running_loop().call_later(later, self._end_wedged)

    def _end_wedged(self) -> None:
        self._watching = None
        most = self._limits.request_timeout_seconds
        ages = {line: line.oldest_seconds() for line in self.lines}
        for line, age in ages.items():
            if age >= WEDGED_AFTER * most:
                self._hangs(line)
        if any(age >= HANGS_AFTER * most for age in ages.values()):
            self._watch()

    def _wait_seconds(self) -> float:
        return min((line.wait_seconds() for line in self.lines if line.open), default=0.0)

    def _retry_after(self, left: float) -> int:
        return max(1, math.ceil(self._wait_seconds() - left))

    def _detach(self, segment: Segment) -> None:
        for line in self.lines:
            line.detach(segment)


def _loop_time(deadline_ns: int) -> float:
    return asyncio.get_running_loop().time() + (deadline_ns - time.monotonic_ns()) / 1e9
