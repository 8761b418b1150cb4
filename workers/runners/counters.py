"""What a runner counts of itself. Every method is called with the service's lock held."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.domain.serving import BatchStatistics, Timing

_SMOOTHING = 0.1


@dataclass(slots=True, kw_only=True)
class Sum:
    """A number of events and the time they took."""

    count: int = 0
    nanoseconds: int = 0

    def add(self, nanoseconds: int, *, count: int = 1) -> None:
        """Count one more, or several that took so long together."""
        self.count += count
        self.nanoseconds += nanoseconds

    def seen(self) -> Timing:
        """Return both as a record."""
        return Timing(count=self.count, nanoseconds=self.nanoseconds)


@dataclass(slots=True, kw_only=True)
class Counters:
    """Totals since the runner started.

    Attributes:
        queue, input, compute, output: a request's four times: waiting, making the engine's inputs, the engine, writing
            the answer.
        rows_per_second: as of late, while it was busy.
    """

    rows_per_second: float
    rows: int = 0
    queue: Sum = field(default_factory=Sum)
    input: Sum = field(default_factory=Sum)
    compute: Sum = field(default_factory=Sum)
    output: Sum = field(default_factory=Sum)
    batches: dict[int, Sum] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    last_inference_ns: int = 0

    def ran(self, rows: Sequence[int], *, queue_ns: int, input_ns: int, compute_ns: int, output_ns: int) -> None:
        """Note one run of the engine for requests with so many rows each; `queue_ns` is their sum."""
        count, total = len(rows), sum(rows)
        self.rows += total
        self.queue.add(queue_ns, count=count)
        self.input.add(input_ns * count, count=count)
        self.compute.add(compute_ns * count, count=count)
        self.output.add(output_ns * count, count=count)
        self.batches.setdefault(total, Sum()).add(compute_ns)
        self.last_inference_ns = time.monotonic_ns()

    def worked(self, rows: int, *, seconds: float, lanes: int) -> None:
        """Follow the rate: a lane took so long for so many rows while so many lanes ran.

        The time of a row is smoothed, not the rate: of slow and fast requests in turn, the slow ones are the wait.
        """
        mine = seconds / (rows * lanes)
        usual = 1 / self.rows_per_second if self.rows_per_second > 0 else mine
        self.rows_per_second = 1 / max(usual + _SMOOTHING * (mine - usual), 1e-9)

    def batch_statistics(self) -> tuple[BatchStatistics, ...]:
        """Return the runs by their number of rows."""
        return tuple(BatchStatistics(rows=rows, runs=runs.seen()) for rows, runs in sorted(self.batches.items()))
