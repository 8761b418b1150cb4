"""The converted program as QDQ ONNX under the signature's names, its batch axis symbolic where the signature's is."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch.fx import GraphModule

from app.domain.errors import ToolchainFailed
from workers import fixed_batch, graphs, torch_programs
from workers.data.batches import Tensors
from workers.toolchains.finish import ONNXRUNTIME_ERRORS
from workers.toolchains.torchao.calibration import Program

Array = npt.NDArray[Any]

# A value at the edge of two steps may fall to either side where sums are taken in another order; a graph that mixes
# rows is wrong by about all of the energy.
_NOISE = 1e-3
_SMALLEST_SYMBOLIC = 2  # the exporter takes an axis of 0 or 1 for a constant


def to_onnx(module: GraphModule, program: Program) -> onnx.ModelProto:
    """Export the converted module as it is.

    Raises:
        ToolchainFailed: the exporter cannot express it.
    """
    leaves = [torch.zeros([_size(size) for size in each.shape], dtype=each.dtype) for each in program.inputs.values()]
    args, kwargs = program.arguments(leaves)
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf, each in zip(leaves, program.inputs.values(), strict=True):
        free = [axis for axis, size in enumerate(each.shape) if isinstance(size, torch.SymInt)]
        if free:
            shapes[leaf] = dict.fromkeys(free, torch.export.Dim.AUTO)
    symbolic = shapes.dynamic_shapes(module, args, kwargs)  # type: ignore[no-untyped-call]
    exported = torch.export.export(module, args, kwargs, dynamic_shapes=symbolic)
    return torch_programs.to_onnx(exported)


def _size(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else max(int(size.node.hint or 0), _SMALLEST_SYMBOLIC)


def take_names(made: onnx.GraphProto, float32: onnx.GraphProto) -> None:
    """Name inputs and outputs as the float32 graph does, in the same order.

    Raises:
        ToolchainFailed: they are not as many, or of another type.
    """
    pairs = [*_pairs(made.input, float32.input), *_pairs(made.output, float32.output)]
    wanted = {old.name: new.name for old, new in pairs}
    values = {name for each in graphs.graphs_of(made) for node in each.node for name in node.output}
    values |= {tensor.name for each in graphs.graphs_of(made) for tensor in each.initializer}
    in_the_way = values & (set(wanted.values()) - set(wanted))
    _rename(made, wanted | {name: _free(name, values | set(wanted.values())) for name in in_the_way})


def declare_shapes(made: onnx.GraphProto, float32: onnx.GraphProto) -> None:
    """Declare inputs and outputs as the float32 graph does, the names of its symbolic axes included.

    Raises:
        ToolchainFailed: an input's axis is fixed where the float32 graph takes any size.
    """
    for old, new in _pairs(made.input, float32.input):
        axes = zip(old.type.tensor_type.shape.dim, new.type.tensor_type.shape.dim, strict=True)
        if any(a.HasField("dim_value") and not b.HasField("dim_value") for a, b in axes):
            raise ToolchainFailed(
                f"The quantized program takes one size of {new.name!r}, the model any: set toolchain to nncf."
            )
    for old, new in [*_pairs(made.input, float32.input), *_pairs(made.output, float32.output)]:
        old.type.CopyFrom(new.type)


def with_any_batch(made: onnx.ModelProto, rows: Tensors, *, size: int, axis: str) -> onnx.ModelProto:
    """Return the graph, exported for `size` rows, for any number of rows, and prove it on some.

    Args:
        rows: more rows than `size`, by input name.
        axis: what to call the axis.

    Raises:
        ToolchainFailed: there is no telling where the graph says how many rows there are.
    """
    rewritten = fixed_batch.rewrite(made, size=size, axis=axis)
    if rewritten is None or not _same_rows(made, rewritten, rows, size=size):
        raise ToolchainFailed(
            f"The .pt2 takes {size} rows at a time and the quantized graph cannot be made to take any number: export "
            "it with a symbolic batch (torch.export.Dim), or set toolchain to nncf."
        )
    return rewritten


def _same_rows(made: onnx.ModelProto, rewritten: onnx.ModelProto, rows: Tensors, *, size: int) -> bool:
    count = len(next(iter(rows.values())))
    try:
        whole = _answers(rewritten, [rows])[0]
        parts = _answers(
            made, [{name: array[at : at + size] for name, array in rows.items()} for at in (0, count - size)]
        )
    except ONNXRUNTIME_ERRORS:
        return False
    return all(
        len(found) == count and _close(found[:size], first) and _close(found[-size:], last)
        for found, first, last in zip(whole, *parts, strict=True)
    )


def _answers(graph: onnx.ModelProto, batches: list[Tensors]) -> list[list[Array]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # a graph that does not run is an answer here
    # as it stands: fused kernels would round in other places for other numbers of rows
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(None, batch) for batch in batches]


def _close(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape:
        return False
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return float(((a - b) ** 2).sum()) <= _NOISE * float((b**2).sum())


def _pairs(
    made: Sequence[onnx.ValueInfoProto], float32: Sequence[onnx.ValueInfoProto]
) -> list[tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]]:
    kinds = [[value.type.tensor_type.elem_type for value in values] for values in (made, float32)]
    if kinds[0] != kinds[1]:
        raise ToolchainFailed(
            "The quantized program's inputs or outputs are not those of its float32 graph: set toolchain to nncf."
        )
    return list(zip(made, float32, strict=True))


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for each in graphs.graphs_of(graph):
        for node in each.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for value in (*each.initializer, *each.input, *each.output, *each.value_info):
            value.name = names.get(value.name, value.name)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
