"""What a search will need, before it begins: from float32's size, memory and latency, and the number of rows.

Rates are rough and rather high than low; the report sets them beside what happened.
"""

from dataclasses import dataclass

from app.domain.errors import DoesNotFit, JobFailure
from app.domain.reports import Report
from app.domain.search import Forecast
from workers.limits import Limits

TRIAL_SECONDS, FINAL_SECONDS = 1.0, 2.0
"""How long a form is timed in a trial, whose ratio picks finalists, and among the finalists, side by side."""
_LEAST_RUNS, _MOST_RUNS = 30, 2000

_MIB, _GIB = 2**20, 2**30

_LIBRARIES_BYTES = 400 * _MIB
"""What a stage holds with the toolchains loaded and no model."""
_COPIES = 3
"""How many copies of the weights quantizing holds at once: the graph, the one being changed, the engine's."""
_LEAST_COPIES = 2
_BATCH_ACTIVATIONS = 8
"""How many rows' activations count: scoring answers more at once, but most buffers are used again layer by layer."""

_STAGE_SECONDS = 2.0
_LIBRARY_SECONDS = 4.0
_PASSES_TO_CALIBRATE = 5
_PASSES_TO_SCORE = 3
_PASSES_TO_TRAIN = 30
"""Forwards and backwards with fake quantization, in torch."""
_FULL_TIMING_RUNS = 1000
_USUAL_TRIALS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What decides how much a search needs.

    Attributes:
        row_seconds: float32's median time for one row.
        added_bytes: what float32 adds to a process that loads it.
    """

    size_bytes: int
    row_seconds: float
    added_bytes: int
    calibration: int
    selection: int
    final: int

    @classmethod
    def of(cls, report: Report, *, calibration: int, selection: int, final: int) -> "Load":
        """Read it from float32's report."""
        memory = report.memory.get("float32")
        return cls(
            size_bytes=report.size.bytes,
            row_seconds=report.latency["float32"].p50_ms / 1e3,
            added_bytes=memory.added_bytes if memory else 0,
            calibration=calibration,
            selection=selection,
            final=final,
        )

    def runs(self, seconds: float) -> int:
        """Return how often to time a form so that it takes about so long."""
        return max(_LEAST_RUNS, min(_MOST_RUNS, int(seconds / max(self.row_seconds, 1e-6))))

    @property
    def trial_seconds(self) -> float:
        """One trial: made, timed, weighed, scored."""
        timed = 2 * self.runs(TRIAL_SECONDS)
        rows = _PASSES_TO_CALIBRATE * self.calibration + _PASSES_TO_SCORE * self.selection + timed
        return _LIBRARY_SECONDS + 4 * _STAGE_SECONDS + rows * self.row_seconds

    def training_seconds(self, rows: int) -> float:
        """What a trial takes longer that trains on so many rows, each as often as it comes."""
        return _LIBRARY_SECONDS + _STAGE_SECONDS + _PASSES_TO_TRAIN * rows * self.row_seconds

    @property
    def final_seconds(self) -> float:
        """The finalists timed again, and the winner measured in full."""
        rows = _PASSES_TO_SCORE * self.final + 5 * self.runs(FINAL_SECONDS) + _FULL_TIMING_RUNS
        return 8 * _STAGE_SECONDS + rows * self.row_seconds

    @property
    def memory_bytes(self) -> int:
        """The largest stage, as expected."""
        activations = max(0, self.added_bytes - self.size_bytes)
        return _LIBRARIES_BYTES + _COPIES * self.size_bytes + _BATCH_ACTIVATIONS * activations

    @property
    def least_bytes(self) -> int:
        """The largest stage, at the very least."""
        return _LIBRARIES_BYTES // 2 + _LEAST_COPIES * self.size_bytes


def foresee(load: Load, *, time_limit_seconds: float) -> Forecast:
    """Say what a search will need."""
    whole = _USUAL_TRIALS * load.trial_seconds + load.final_seconds
    return Forecast(
        rows=load.calibration + load.selection + load.final,
        memory_bytes=load.memory_bytes,
        seconds=round(min(whole, time_limit_seconds), 1),
    )


def does_not_fit(load: Load, *, time_limit_seconds: float, limits: Limits) -> JobFailure | None:
    """Return why a search is not worth beginning; None if it may fit."""
    if load.least_bytes > limits.memory_bytes:
        return DoesNotFit(
            f"Quantizing a model of {load.size_bytes / _GIB:.2g} GiB needs about {load.memory_bytes / _GIB:.2g} GiB of "
            f"memory, and the limit is {limits.memory_bytes / _GIB:.2g} GiB (OCTET_JOB_MEMORY_BYTES): raise it."
        )
    needed = load.trial_seconds + load.final_seconds
    if needed > limits.seconds:
        return DoesNotFit(
            f"One trial and the final measuring need about {needed:.0f} seconds, and a job may take "
            f"{limits.seconds:.0f} (OCTET_JOB_TIMEOUT_SECONDS): raise it, or send fewer rows."
        )
    if needed > time_limit_seconds:
        return DoesNotFit(
            f"One trial and the final measuring need about {needed:.0f} seconds, and time_limit_seconds is "
            f"{time_limit_seconds:g}: raise it, or send fewer rows."
        )
    return None
