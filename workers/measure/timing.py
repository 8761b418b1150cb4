"""The stage that times every form against float32 in one process, in turns, and reads which kernels ran."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from app.domain.evidence import Receipt
from app.domain.reports import Kernels, Latency
from workers.data.batches import Tensors
from workers.measure.engine import Session, runs_here
from workers.measure.environment import environment
from workers.measure.inputs import random_inputs
from workers.measure.kernels import kernels
from workers.measure.layers import load
from workers.measure.receipt import receipt
from workers.stage_records.common import Progress
from workers.stage_records.measuring import Form, TimeResult, TimeSpec

WARM_UP_RUNS = 10
WARM_UP_SECONDS = 1.0
SECONDS_PER_FORM = 10.0
SECONDS_PER_BATCH = 1.0
LEAST_RUNS = 5
QUANTILES = tuple(range(0, 101, 5))
_MOST_THROUGHPUT_RUNS = 20


def measure(spec: TimeSpec, scratch: Path, progress: Progress) -> TimeResult:
    """Time one row per call, all forms in turns, then `batch_size` rows per call, then profile them in turns.

    Raises:
        ToolchainFailed: a form that OpenVINO cannot compile or run.
        PrecisionUnavailable: a form that this CPU cannot run.
    """
    core = ov.Core()
    forms = [form for form in spec.forms if runs_here(form, core) or not form.optional]
    sessions = [Session.open(form, spec.signature, scratch=scratch, core=core) for form in forms]
    one_row = random_inputs(spec.signature, rows=1)
    progress(0.1, "timing one row per call")
    seconds = in_turns(sessions, one_row, runs=spec.runs)
    size = _batch_size(spec, seconds_per_row=max(float(np.median(times)) for times in seconds))
    progress(0.6, f"timing {size} rows per call")
    rates = _throughput(sessions, random_inputs(spec.signature, rows=size), size=size)
    del sessions
    ran: dict[str, Kernels] = {}
    if spec.profiled:
        progress(0.8, "reading which kernels ran")
        ran = kernels(forms, spec.signature, one_row, scratch=scratch, core=core)
    return TimeResult(
        latency={
            form.name: latency(times, reference=seconds[0], rate=rate, batch_size=size)
            for form, times, rate in zip(forms, seconds, rates, strict=True)
        },
        kernels=ran,
        environment=environment(),
        receipt=_receipt(forms, ran, scratch=scratch),
    )


def in_turns(sessions: Sequence[Session], inputs: Tensors, *, runs: int) -> list[NDArray[np.float64]]:
    """Run each session once per round and return every run's seconds, per session.

    Whatever else the machine does in a round falls on all forms alike; every other round goes through them backwards,
    so that none always follows the same one.
    """
    once = [_warm_up(session, inputs) for session in sessions]
    rounds = max(LEAST_RUNS, min(runs, int(SECONDS_PER_FORM * len(sessions) / max(sum(once), 1e-9))))
    times = np.empty((len(sessions), rounds))
    forwards = list(range(len(sessions)))
    for number in range(rounds):
        for index in forwards if number % 2 == 0 else reversed(forwards):
            times[index, number] = _seconds(sessions[index], inputs)
    return list(times)


def latency(seconds: NDArray[np.float64], *, reference: NDArray[np.float64], rate: float, batch_size: int) -> Latency:
    """Sum up one form's runs; the speed-up is a ratio of medians taken in the same rounds."""
    p50, p95, p99, *quantiles = (np.percentile(seconds, (50, 95, 99, *QUANTILES)) * 1e3).tolist()
    return Latency(
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        speedup=float(np.median(reference) / np.median(seconds)),
        runs=len(seconds),
        rows_per_second=rate,
        batch_size=batch_size,
        quantiles_ms=tuple(quantiles),
    )


def _receipt(forms: Sequence[Form], ran: dict[str, Kernels], *, scratch: Path) -> Receipt | None:
    if len(forms) == 1 or not ran:
        return None
    float32, variant = forms[0], forms[-1]
    return receipt(
        load(scratch / float32.artifact), load(scratch / variant.artifact), ran[float32.name], ran[variant.name]
    )


def _throughput(sessions: Sequence[Session], inputs: Tensors, *, size: int) -> list[float]:
    times = in_turns(sessions, inputs, runs=_MOST_THROUGHPUT_RUNS)
    return [size / float(np.median(seconds)) for seconds in times]


def _batch_size(spec: TimeSpec, *, seconds_per_row: float) -> int:
    """A model that does not count rows takes one at a time; a slow one gets smaller batches."""
    if not spec.signature.batched:
        return 1
    return max(1, min(spec.batch_size, int(SECONDS_PER_BATCH / seconds_per_row)))


def _warm_up(session: Session, inputs: Tensors) -> float:
    """Run until the engine has settled, and return the last run's seconds."""
    start = perf_counter()
    last = _seconds(session, inputs)
    for _ in range(WARM_UP_RUNS):
        if perf_counter() - start > WARM_UP_SECONDS:
            break
        last = _seconds(session, inputs)
    return last


def _seconds(session: Session, inputs: Tensors) -> float:
    start = perf_counter()
    session.infer(inputs)
    return perf_counter() - start
