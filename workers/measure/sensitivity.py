"""The stage that quantizes one layer at a time, as the variant does it, and reads what that does to the answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
import onnxruntime

from app.domain.evidence import LayerSensitivity
from app.domain.tensors import Signature
from workers.data.batches import Batch, batches
from workers.measure.answers import Answers, Array, rows_first
from workers.measure.constants import session
from workers.measure.fidelity import sqnr_db
from workers.measure.layers import load
from workers.measure.metrics import Metrics
from workers.measure.metrics.sqnr import MOST_DB
from workers.measure.qdq import Quantized
from workers.stage_records.common import Progress, RowSource
from workers.stage_records.measuring import SenseResult, SenseSpec

MOST_ROWS = 64
LEAST_ROWS = 4
MOST_BYTES = 32 * 2**20
"""Of inputs and of float32's answers, kept while the layers take turns: fewer rows are asked where rows are large."""

_BATCH_ROWS = 32
_BATCH_BYTES = 4 * 2**20
_SHARE_TO_RUN = 0.5
"""How much of the time running may take, as planned from float32's: the rest is for opening graphs, and for doubt."""

_FORMS = ("float32", "variant")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Some rows, and what float32 answers."""

    batch: Batch
    answers: list[Array]


def sense(spec: SenseSpec, scratch: Path, progress: Progress) -> SenseResult:
    """Quantize each layer alone, all else in float32, and compare the answers on at most 64 rows, spread evenly.

    A layer's part are its weights, what quantizes its inputs, and what is quantized behind it before the next layer.
    The graphs run in ONNX Runtime, which opens convolutional ones three to seven times faster than OpenVINO, in float
    arithmetic on the quantized values: the integer result, to within float rounding. The layers that cost most to keep
    in float come first; those that the time does not reach are left out.

    Returns:
        the layers by SQNR, the worst first, those that change nothing last.

    Raises:
        DatasetUnfit: a row that the model does not take, or a label that is none of its classes.
    """
    start = perf_counter()
    progress(0.0, "reading both graphs")
    float32, variant = load(scratch / spec.float32), load(scratch / spec.variant)
    quantized = Quantized(variant, float32)
    if not quantized.layers or not spec.rows.rows:
        return SenseResult(layers=())
    asked = _ask(spec, session(float32), layers=len(quantized.layers), scratch=scratch)
    kinds = {node.name: node.op_type for graph in (variant, float32) for node in graph.graph.node}
    found: list[LayerSensitivity] = []
    for done, name in enumerate(_dearest_first(quantized, spec.costs)):
        if perf_counter() - start > spec.seconds:
            break
        progress((done + 1) / (len(quantized.layers) + 1), f"quantizing {name[:80]} alone")
        graph = quantized.only([name])
        sqnr, drop = _compare(graph, asked, spec)
        found.append(
            LayerSensitivity(
                name=name, kind=kinds[name], sqnr_db=sqnr, drop=drop, cost_microseconds=spec.costs.get(name, 0.0)
            )
        )
    return SenseResult(layers=tuple(sorted(found, key=_worst_first)))


def _worst_first(layer: LayerSensitivity) -> float:
    return MOST_DB if layer.sqnr_db is None else layer.sqnr_db


def _dearest_first(quantized: Quantized, costs: dict[str, float]) -> list[str]:
    """Order layers by what they cost in float, then by the size of their weights."""
    return sorted(quantized.layers, key=lambda name: (costs.get(name, 0.0), quantized.weight_size(name)), reverse=True)


def _ask(spec: SenseSpec, float32: onnxruntime.InferenceSession, *, layers: int, scratch: Path) -> list[_Asked]:
    """Let float32 answer as many rows as time and memory allow, 4 to 64."""
    first = next(batches(_some(spec.rows, rows=1), spec.signature, scratch=scratch, size=1))
    answers, seconds = _timed(float32, first, spec.signature)
    size = sum(array.nbytes for array in (*first.inputs.values(), *answers))
    affordable = spec.seconds * _SHARE_TO_RUN / max(layers * seconds, 1e-9)
    rows = int(min(MOST_ROWS, max(LEAST_ROWS, min(affordable, MOST_BYTES / max(size, 1)))))
    together = int(min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(size, 1))))
    return [
        _Asked(batch=batch, answers=_run(float32, batch, spec.signature))
        for batch in batches(_some(spec.rows, rows=rows), spec.signature, scratch=scratch, size=together)
    ]


def _some(source: RowSource, *, rows: int) -> RowSource:
    """Take rows evenly from all of them: neighbours are often alike."""
    places = np.linspace(0, len(source.rows) - 1, min(rows, len(source.rows))).round().astype(int)
    return replace(source, rows=tuple(source.rows[place] for place in dict.fromkeys(places.tolist())))


def _timed(running: onnxruntime.InferenceSession, batch: Batch, signature: Signature) -> tuple[list[Array], float]:
    _run(running, batch, signature)  # the first run allocates
    start = perf_counter()
    answers = _run(running, batch, signature)
    return answers, perf_counter() - start


def _run(running: onnxruntime.InferenceSession, batch: Batch, signature: Signature) -> list[Array]:
    outputs = running.run([spec.name for spec in signature.outputs], batch.inputs)
    return rows_first(outputs, signature, count=len(batch.rows))


def _compare(graph: onnx.ModelProto, asked: Sequence[_Asked], spec: SenseSpec) -> tuple[float | None, float | None]:
    """Return the SQNR of all outputs in dB, and how much worse the metric is."""
    running = session(graph)
    signal = noise = 0.0
    metrics = Metrics(_FORMS, rows=sum(len(each.batch.rows) for each in asked), names=[spec.metric or "sqnr"])
    for each in asked:
        outputs = [each.answers, _run(running, each.batch, spec.signature)]
        answers = Answers(outputs, labels=each.batch.labels, rows=each.batch.rows)
        close = answers.closeness[0]
        signal, noise = signal + float(close.signal.sum()), noise + float(close.noise.sum())
        if spec.metric is not None:
            metrics.add(answers)
    scores = metrics.scores() if spec.metric is not None else ()
    level = sqnr_db(signal, noise) if np.isfinite(noise) else -MOST_DB
    return level, scores[0].drop.value + 0.0 if scores else None  # -0.0 reads oddly
