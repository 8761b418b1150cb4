"""Ranges of activations from calibration rows: one row in memory at a time, whatever the observer."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqStatic
from workers.data.batches import Tensors, batches
from workers.stage_records.common import Progress
from workers.stage_records.making import TransformSpec
from workers.toolchains import graph as onnx_graph
from workers.toolchains.evaluate import ONNXRUNTIME_ERRORS
from workers.toolchains.histogram import Histogram, Range, least_squares_range
from workers.toolchains.ort.histogram import entropy_range, percentile_range

SHARE = 0.7
"""How much of the technique's time goes into calibrating, for the progress shown."""

# Of all values that one row leaves in the tensors observed together. More tensors are observed in another pass.
MOST_VALUES = 32 * 2**20
_ERRORS_ONLY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What calibration saw of one tensor.

    Attributes:
        range: what the observer makes of it, finite; None where no value was finite.
        non_negative: whether no value was below zero.
    """

    range: Range | None
    non_negative: bool


def observe(
    graph: onnx.ModelProto, tensors: Sequence[str], spec: TransformSpec, *, scratch: Path, progress: Progress
) -> dict[str, Observed]:
    """Run the calibration rows through the graph and return what the recipe's observer makes of each tensor.

    Raises:
        ToolchainFailed: ONNX Runtime cannot run the graph on a row.
        DatasetUnfit: a row that the model does not take.
    """
    recipe = spec.recipe
    if not isinstance(recipe, PtqStatic):
        raise TypeError("Ranges are observed for static quantization alone.")
    rows = _Rows(spec, scratch=scratch, progress=progress)
    try:
        if recipe.observer == "min_max":
            return _extremes(graph, tensors, rows)
        return {name: _ranged(seen, recipe) for name, seen in _histograms(graph, tensors, rows).items()}
    except ONNXRUNTIME_ERRORS as error:
        said = " ".join(str(error).split())[:200]
        raise ToolchainFailed(f"ONNX Runtime cannot run the model on a calibration row: {said}") from error


class _Rows:
    """The calibration rows, one at a time, as often as they are walked; each walk is a share of the progress."""

    def __init__(self, spec: TransformSpec, *, scratch: Path, progress: Progress) -> None:
        self._spec = spec
        self._scratch = scratch
        self._progress = progress
        self.passes = 1
        self._walked = 0

    def __iter__(self) -> Iterator[Tensors]:
        source = self._spec.calibration
        if source is None:
            return
        count = len(source.rows)
        before = self._walked
        self._walked += 1
        for done, batch in enumerate(batches(source, self._spec.signature, scratch=self._scratch, size=1), start=1):
            yield batch.inputs
            share = SHARE * (before + done / count) / self.passes
            self._progress(min(share, SHARE), f"calibrating: {done} of {count} rows")


def _extremes(graph: onnx.ModelProto, tensors: Sequence[str], rows: _Rows) -> dict[str, Observed]:
    """Let the graph itself reduce every tensor, so that no activation leaves it."""
    nodes, outputs = [], {}
    for name in tensors:
        for kind in ("ReduceMin", "ReduceMax"):
            found = onnx_graph.free_name(graph.graph, f"{name}_{kind}")
            nodes.append(helper.make_node(kind, [name], [found], keepdims=1))
            outputs[name, kind] = found
    low = dict.fromkeys(tensors, np.inf)
    high = dict.fromkeys(tensors, -np.inf)
    with _opened(graph, list(outputs.values()), nodes) as session:
        for inputs in rows:
            values = dict(zip(outputs.values(), session.run(list(outputs.values()), inputs), strict=True))
            for name in tensors:
                low[name] = min([low[name], *_finite(values[outputs[name, "ReduceMin"]])])
                high[name] = max([high[name], *_finite(values[outputs[name, "ReduceMax"]])])
    return {name: _observed((low[name], high[name]), low=low[name]) for name in tensors}


def _histograms(graph: onnx.ModelProto, tensors: Sequence[str], rows: _Rows) -> dict[str, Histogram]:
    groups = _groups(_sizes(graph, tensors, rows))
    rows.passes = max(1, len(groups))
    histograms = {name: Histogram() for name in tensors}
    for group in groups:
        with _opened(graph, group, []) as session:
            for inputs in rows:
                for name, values in zip(group, session.run(group, inputs), strict=True):
                    histograms[name].add(values)
    return histograms


def _sizes(graph: onnx.ModelProto, tensors: Sequence[str], rows: _Rows) -> dict[str, int]:
    """Return how many values the first row leaves in each tensor."""
    names = {name: onnx_graph.free_name(graph.graph, f"{name}_Size") for name in tensors}
    nodes = [helper.make_node("Size", [name], [found]) for name, found in names.items()]
    with _opened(graph, list(names.values()), nodes) as session:
        first = next(iter(rows), None)
        if first is None:
            return dict.fromkeys(tensors, 0)
        sizes = session.run(list(names.values()), first)
    return {name: int(size) for name, size in zip(names, sizes, strict=True)}


def _groups(sizes: Mapping[str, int]) -> list[list[str]]:
    """Part the tensors, in order, into groups of at most `MOST_VALUES` values, a larger one by itself."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = MOST_VALUES
        groups[-1].append(name)
        room -= size
    return groups


@contextmanager
def _opened(graph: onnx.ModelProto, outputs: Sequence[str], nodes: Sequence[onnx.NodeProto]) -> Iterator[Any]:
    """Open the graph with other outputs in ONNX Runtime; the graph itself stays as it was."""
    inner = graph.graph
    own, before = list(inner.output), len(inner.node)
    known = {value.name for value in own}
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        path = Path(folder) / "graph.onnx"
        inner.node.extend(nodes)
        inner.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)
        onnx.save(graph, path)
        del inner.node[before:]
        del inner.output[len(own) :]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_cpu_mem_arena = False  # it keeps the most that any row took
        yield onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _ranged(seen: Histogram, recipe: PtqStatic) -> Observed:
    if seen.low > seen.high:
        return Observed(range=None, non_negative=True)
    one_sided = seen.low >= 0 and recipe.activation_dtype != "int8"
    symmetric = recipe.activations == "symmetric" and not one_sided
    if recipe.observer == "percentile":
        found = percentile_range(seen, percentile=recipe.percentile or 100.0, symmetric=symmetric)
    elif recipe.observer == "entropy":
        found = entropy_range(seen, one_sided=one_sided and recipe.activations == "symmetric")
    else:
        found = least_squares_range(seen, steps=254 if symmetric else 255, symmetric=symmetric)
    return _observed(found, low=seen.low)


def _observed(found: Range, *, low: float) -> Observed:
    known = np.isfinite(found).all()
    return Observed(range=found if known else None, non_negative=low >= 0)


def _finite(values: NDArray[np.float32]) -> list[float]:
    """Return the one value of a reduced tensor, or nothing: an empty tensor has no extremes."""
    return [float(value) for value in values.reshape(-1) if np.isfinite(value)]
