"""Gives a graph with a fixed batch a symbolic one, proves that its rows did not change, and records answers."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx

from workers import fixed_batch
from workers.formats.original import Array, Arrays, Original
from workers.formats.session import ERRORS, Session

AXIS = "batch"
CHECKED_SIZES = (1, 2, 3)
# Kernels sum in another order for another batch size: a few hundred float32 roundings (2**-24 each) of growth.
_TOLERANCE = 1e-4
# What a row's neighbours may change in its answer by such roundings, before it counts as depending on them.
_DEPENDENCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A graph with arrays `input:<name>` and `output:<name>`: random input, and what the original answered."""

    graph: onnx.ModelProto
    arrays: Arrays


def make_symbolic(original: Original, rng: np.random.Generator) -> Original:
    """Return the original with a graph whose batch is symbolic, or as it is where that cannot be made to hold."""
    if original.batch is None:
        return original
    if original.batch == "symbolic":
        alone = _rows_stand_alone(original, rng)
        return replace(original, graph=_named(original, rng)) if alone else _without_batch(original)
    rewritten = fixed_batch.rewrite(original.graph, size=original.batch, axis=AXIS)
    if rewritten is None or not _same_rows(original, rewritten, rng, size=original.batch):
        return original
    return replace(
        original, graph=rewritten, answer=_InBatches(original=original, size=original.batch), batch="symbolic"
    )


def record(original: Original, rng: np.random.Generator, *, rows: int) -> Recorded:
    """Ask the original about random rows; about its own number of rows where that is fixed."""
    count = min(rows, original.most_rows) if original.batch == "symbolic" else None
    drawn = original.draw(rng, rows=count)
    answers = original.answer(drawn)
    arrays = {f"input:{name}": array for name, array in drawn.items()}
    return Recorded(graph=original.graph, arrays=arrays | {f"output:{name}": array for name, array in answers.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class _InBatches:
    """Asks an original with a fixed batch about any number of rows, the last batch filled up with the first row."""

    original: Original
    size: int

    def __call__(self, arrays: Arrays) -> Arrays:
        rows = len(next(iter(arrays.values())))
        answers = [self.original.answer(_batch_at(arrays, start, self.size)) for start in range(0, rows, self.size)]
        return {name: np.concatenate([answer[name] for answer in answers])[:rows] for name in answers[0]}


def _batch_at(arrays: Arrays, start: int, size: int) -> Arrays:
    rows = len(next(iter(arrays.values())))
    index = [row if row < rows else 0 for row in range(start, start + size)]
    return {name: np.ascontiguousarray(array[index]) for name, array in arrays.items()}


def _rows_stand_alone(original: Original, rng: np.random.Generator) -> bool:
    """Whether rows asked about together get the answers that each gets by itself."""
    rows = min(max(CHECKED_SIZES), original.most_rows)
    drawn = original.draw(rng, rows=rows)
    together = original.answer(drawn)
    apart = [original.answer(_batch_at(drawn, row, 1)) for row in range(rows)]
    return all(
        _close(np.concatenate([answer[name] for answer in apart]), array, tolerance=_DEPENDENCE)
        for name, array in together.items()
        if array.ndim and len(array) == rows and all(len(answer[name]) == 1 for answer in apart)
    )


def _without_batch(original: Original) -> Original:
    """Return the original with a first axis that takes any size but does not count rows."""
    graph = onnx.ModelProto()
    graph.CopyFrom(original.graph)
    for value in graph.graph.input:
        value.type.tensor_type.shape.dim[0].Clear()
    return replace(original, graph=graph, batch=None)


def _named(original: Original, rng: np.random.Generator) -> onnx.ModelProto:
    """Call the batch axis `batch` on all inputs, and on the outputs that were seen to follow it."""
    graph = onnx.ModelProto()
    graph.CopyFrom(original.graph)
    rows = min(3, original.most_rows)
    following = set.intersection(*(_of_length(original, rng, rows=count) for count in {rows, max(1, rows - 1)}))
    taken = {dim.dim_param for each in graph.graph.input for dim in each.type.tensor_type.shape.dim[1:]}
    if AXIS not in taken:
        _name_axis(graph.graph.input, AXIS)
        _name_axis((each for each in graph.graph.output if each.name in following), AXIS)
    return graph


def _of_length(original: Original, rng: np.random.Generator, *, rows: int) -> set[str]:
    answers = original.answer(original.draw(rng, rows=rows))
    return {name for name, answer in answers.items() if answer.ndim and len(answer) == rows}


def _name_axis(values: Iterable[onnx.ValueInfoProto], axis: str) -> None:
    """Make the first axis of these inputs or outputs symbolic."""
    for value in values:
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].dim_param = axis


def _same_rows(original: Original, graph: onnx.ModelProto, rng: np.random.Generator, *, size: int) -> bool:
    rows = max(*CHECKED_SIZES, size)
    drawn = original.draw(rng, rows=rows)
    once = original.answer(_batch_at(drawn, 0, size))
    if any(answer.ndim == 0 or len(answer) != size for answer in once.values()):
        return False  # an output without rows: what it says depends on all of them
    expected = _InBatches(original=original, size=size)(drawn)
    try:
        session = Session(graph)
        return all(
            _agree(session.answer({name: array[:count] for name, array in drawn.items()}), expected, rows=count)
            for count in CHECKED_SIZES
        )
    except ERRORS:
        return False


def _agree(answers: Arrays, expected: Arrays, *, rows: int) -> bool:
    return all(_close(answers[name], array[:rows]) for name, array in expected.items() if name in answers)


def _close(found: Array, expected: Array, *, tolerance: float = _TOLERANCE) -> bool:
    if found.shape != expected.shape:
        return False
    if expected.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    scale = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    return bool(np.allclose(found, expected, rtol=0, atol=tolerance * max(scale, 1e-30), equal_nan=True))
