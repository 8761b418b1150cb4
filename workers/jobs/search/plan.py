"""What a search starts from: its rows, its model's profile, its name in the store and its forecast."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from app import __version__
from app.catalogue.trials import Trials
from app.domain.models import ModelFormat
from app.domain.recipes import Auto
from app.domain.search import Forecast
from workers.jobs.bench import Bench
from workers.jobs.lookup import Order, look_up
from workers.jobs.rows import Chosen, choose_selection
from workers.jobs.search.candidates import Profile
from workers.jobs.search.forecast import Load, does_not_fit, foresee

_LIBRARIES = ("openvino", "nncf", "onnx", "onnxruntime", "torch", "torchao")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    Attributes:
        order: its evaluation rows are those of the final score.
        selection: the rows that choose.
        found: finished trials of the same search are in `trials` already.
    """

    request: Auto
    order: Order
    selection: Chosen
    profile: Profile
    load: Load
    forecast: Forecast
    trials: Trials


async def make_plan(bench: Bench, request: Auto) -> Plan:
    """Look up what the job names, part the rows, and say what it will need.

    Raises:
        DoesNotFit: it needs more than there is.
    """
    order, calibration, selection = await _parted(bench, request)
    final = order.evaluation
    report = await bench.workshop.variants.report(order.float32)
    load = Load.of(report, calibration=len(calibration.rows), selection=len(selection.rows), final=len(final.rows))
    trials = Trials(bench.workshop.store, search_key(order, selection, request))
    limit = float(request.time_limit_seconds)
    failure = does_not_fit(load, time_limit_seconds=limit, limits=bench.workshop.limits)
    if failure is not None and not await trials.found():
        raise failure
    return Plan(
        request=request,
        order=order,
        selection=selection,
        profile=Profile.of(report.kernels["float32"], torch_export=order.model.format is ModelFormat.TORCH_EXPORT),
        load=load,
        forecast=foresee(load, time_limit_seconds=limit),
        trials=trials,
    )


async def trials_of(bench: Bench, request: Auto) -> Trials:
    """Return the trials of the search that a job asks for.

    Raises:
        OctetError: what the job names is not there, or does not fit.
    """
    order, _, selection = await _parted(bench, request)
    return Trials(bench.workshop.store, search_key(order, selection, request))


async def _parted(bench: Bench, request: Auto) -> tuple[Order, Chosen, Chosen]:
    """Return the order with the rows of the final score, the rows that calibrate, and those that choose."""
    order = await look_up(bench, request)
    if order.calibration is None:
        raise ValueError("a search without calibration rows was accepted")
    selection, final = choose_selection(order.evaluation, calibration=order.calibration, seed=request.seed)
    return replace(order, evaluation=final), order.calibration, selection


def search_key(order: Order, selection: Chosen, request: Auto) -> str:
    """Return what names the search in the store: all that its trials depend on, and nothing else."""
    calibration = order.calibration.use if order.calibration else None
    facts = [
        order.float32.artifact.sha256,
        order.model.upload.sha256,
        asdict(order.model.preprocessing) if order.model.preprocessing else None,
        calibration.dataset if calibration else "",
        calibration.sha256 if calibration else "",
        selection.use.dataset,
        selection.use.sha256,
        request.calibration_rows,
        request.seed,
        request.budget.metric,
        _machine(),
        [__version__, *(version(library) for library in _LIBRARIES)],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _machine() -> list[str]:
    """Return what makes times comparable: the processor, and how many cores of it there are."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    return [*sorted(set(names)), str(len(os.sched_getaffinity(0)))]
