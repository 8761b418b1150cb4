"""One variant's predictions as they are counted: how long, how they ended, and why some got no answer."""

import asyncio
import time
from types import TracebackType
from typing import Literal, Self

from prometheus_client import Counter, Gauge, Histogram

from app.domain.errors import OctetError
from app.telemetry.tracing import Traces

Labels = tuple[str, str, str]
"""Model, version and variant."""

Reason = Literal[
    "queue_full",
    "deadline_predicted",
    "deadline",
    "not_ready",
    "unavailable",
    "too_large",
    "invalid",
    "cancelled",
    "crashed",
    "error",
]
"""Why a prediction got no answer."""

Outcome = Literal["ok", "invalid", "unavailable", "crashed", "timeout", "cancelled", "error"]

# By an error's code, or its nearest parent's: `wait_too_long` is a QueueFull that says why.
_REASONS: dict[str, Reason] = {
    "queue_full": "queue_full",
    "wait_too_long": "deadline_predicted",
    "variant_not_ready": "not_ready",
    "unavailable": "unavailable",
    "too_large": "too_large",
    "invalid_input": "invalid",
    "runner_crashed": "crashed",
    "deadline_exceeded": "deadline",
}
_OUTCOMES: dict[Reason, Outcome] = {
    "queue_full": "unavailable",
    "deadline_predicted": "unavailable",
    "not_ready": "unavailable",
    "unavailable": "unavailable",
    "deadline": "timeout",
    "too_large": "invalid",
    "invalid": "invalid",
    "cancelled": "cancelled",
    "crashed": "crashed",
    "error": "error",
}
_NOTE_EVERY_SECONDS = 10.0


def reason_of(error: BaseException, *, leaves: tuple[type[BaseException], ...] = ()) -> Reason:
    """Return why a prediction that ended so got no answer.

    Args:
        leaves: with which a request ends whose client is gone, beside a cancelled task.
    """
    if isinstance(error, (asyncio.CancelledError, *leaves)):
        return "cancelled"
    if not isinstance(error, OctetError):
        return "error"
    codes = (parent.code for parent in type(error).__mro__ if issubclass(parent, OctetError))
    return next((_REASONS[code] for code in codes if code in _REASONS), "error")


class VariantMeters:
    """Observes one variant's predictions. Made once for each variant; a request then costs a few microseconds."""

    def __init__(
        self,
        labels: Labels,
        *,
        durations: Histogram,
        queue: Histogram,
        compute: Histogram,
        in_flight: Gauge,
        rejected: Counter,
        used: Gauge,
        leaves: tuple[type[BaseException], ...],
        traces: Traces | None,
    ) -> None:
        self.labels = labels
        self.queue = queue
        self.compute = compute
        self.in_flight = in_flight
        self.traces = traces
        self._durations = durations
        self._rejected = rejected
        self._used = used
        self._leaves = leaves
        self._by_outcome: dict[Outcome, Histogram] = {}
        self._by_reason: dict[Reason, Counter] = {}
        self._note_at = 0.0

    def prediction(self, *, began: float) -> "Prediction":
        """Return what observes one prediction, as a context.

        Args:
            began: `time.perf_counter()` when the request's first byte was read.
        """
        return Prediction(self, began=began)

    def refused(self, error: BaseException, *, began: float) -> None:
        """Observe a prediction that was refused before it began, for instance before its body was read."""
        Prediction(self, began=began).end(error)

    def failed(self, error: BaseException) -> tuple[Outcome, Reason]:
        """Count a prediction without an answer; return how it ended and why."""
        reason = reason_of(error, leaves=self._leaves)
        count = self._by_reason.get(reason)
        if count is None:
            count = self._by_reason[reason] = self._rejected.labels(*self.labels, reason)
        count.inc()
        return _OUTCOMES[reason], reason

    def ended(self, outcome: Outcome, *, seconds: float, now: float) -> None:
        """Observe how long a prediction took that ended so; `now` is on `time.perf_counter()`."""
        duration = self._by_outcome.get(outcome)
        if duration is None:
            duration = self._by_outcome[outcome] = self._durations.labels(*self.labels, outcome)
        duration.observe(seconds)
        if now >= self._note_at:
            self._note_at = now + _NOTE_EVERY_SECONDS
            self._used.set(time.time())


class Prediction:
    """One prediction while it is answered."""

    __slots__ = ("_answered", "_began", "_compute_seconds", "_meters", "_queue_seconds", "_rows")

    def __init__(self, meters: VariantMeters, *, began: float) -> None:
        self._meters = meters
        self._began = began
        self._answered = 0.0
        self._queue_seconds = 0.0
        self._compute_seconds = 0.0
        self._rows = 0

    def __enter__(self) -> Self:
        self._meters.in_flight.inc()
        return self

    def answered(self, *, queue_seconds: float, compute_seconds: float, rows: int) -> None:
        """Observe the times that came with the answer.

        Args:
            rows: that the engine ran at once.
        """
        self._meters.queue.observe(queue_seconds)
        self._meters.compute.observe(compute_seconds)
        if self._meters.traces is not None:
            self._answered = time.perf_counter()
            self._queue_seconds, self._compute_seconds, self._rows = queue_seconds, compute_seconds, rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meters.in_flight.dec()
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """Observe how it ended."""
        meters, now = self._meters, time.perf_counter()
        outcome: Outcome = "ok"
        reason = None
        if error is not None:
            outcome, reason = meters.failed(error)
        meters.ended(outcome, seconds=now - self._began, now=now)
        if meters.traces is not None:
            meters.traces.record(
                meters.labels,
                outcome=outcome,
                reason=reason,
                seconds=now - self._began,
                answered_seconds_ago=now - self._answered if self._answered else None,
                queue_seconds=self._queue_seconds,
                compute_seconds=self._compute_seconds,
                rows=self._rows,
            )
