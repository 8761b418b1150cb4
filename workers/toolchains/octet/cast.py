"""The `bfloat16` and `float16` variants: weights stored in half the bytes, cast back where they are used."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

from app.domain.errors import PrecisionUnavailable, ToolchainFailed
from app.domain.recipes import Cast
from app.domain.variants import Execution
from workers import graphs
from workers.openvino_engine import has_bfloat16
from workers.stage_records.common import Progress
from workers.stage_records.making import TransformSpec
from workers.toolchains.made import Made

# Biases, scales and the small constants that operators read as parameters gain nothing.
LEAST_ELEMENTS = 64
LARGEST_FLOAT16 = 65504.0
_MATRIX_AXES = 2
_NAMES_SHOWN = 5

Precision = Literal["bfloat16", "float16"]
_TYPES: dict[Precision, npt.DTypeLike] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def transform(graph: onnx.ModelProto, spec: TransformSpec, _scratch: Path, progress: Progress) -> Made:
    """Store every float32 weight of two or more axes in the shorter float, followed by a Cast to float32.

    The cast is exact; what rounds is the storing, to the nearest. With a significand of p bits it errs by at most
    2**-p of a value: 2**-8 in bfloat16, 2**-11 in float16, and by at most 2**-25 below float16's smallest normal
    number, 2**-14 (Higham 2002, theorem 2.2; IEEE 754-2019, table 3.5). Weights with values beyond float16's largest
    stay as they are, and a note says so. `bfloat16` also runs in bfloat16; `float16` runs in float32.

    Raises:
        PrecisionUnavailable: this CPU has no bfloat16 instructions, and bfloat16 was asked for.
        ToolchainFailed: there is no such weight.
    """
    precision = spec.recipe.precision if isinstance(spec.recipe, Cast) else "bfloat16"
    if precision == "bfloat16":
        check_cpu()
    progress(0.1, f"casting the weights to {precision}")
    caster = _Caster(precision=precision)
    # inner graphs first: rebuilding an outer one copies what is inside it
    for each in reversed(list(graphs.graphs_of(graph.graph))):
        caster.cast(each)
    if not caster.casts:
        raise ToolchainFailed(
            f"The graph holds no float32 weight of {LEAST_ELEMENTS} elements or more to cast to {precision}: serve "
            "float32."
        )
    execution = Execution(float_precision="bfloat16" if precision == "bfloat16" else "float32")
    return Made(graph=graph, execution=execution, notes=caster.notes)


def check_cpu() -> None:
    """Raise `PrecisionUnavailable` unless the engine has bfloat16 kernels for this CPU."""
    if not has_bfloat16(openvino.Core()):
        raise PrecisionUnavailable(
            "This CPU has no bfloat16 instructions: use int8, or a worker with avx512_bf16 or AMX."
        )


@dataclass(slots=True, kw_only=True)
class _Caster:
    precision: Precision
    casts: int = 0
    too_large: list[str] = field(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.too_large:
            return ()
        names = ", ".join(name[:40] for name in self.too_large[:_NAMES_SHOWN])
        count, limit = len(self.too_large), f"{LARGEST_FLOAT16:g}"
        return (f"Weights that hold values beyond {limit}, float16's largest, stay float32: {names} ({count} in all).",)

    def cast(self, graph: onnx.GraphProto) -> None:
        """Replace the weights of one graph, the graphs inside its nodes not included."""
        outside = {value.name for value in (*graph.input, *graph.output)}
        weights = [tensor for tensor in graph.initializer if tensor.name not in outside and self._is_cast(tensor)]
        nodes = [self._shorten(tensor, name=tensor.name) for tensor in weights]
        for node in graph.node:
            nodes.extend(self._with_constant_cast(node, outside))
        del graph.node[:]
        graph.node.extend(nodes)

    def _with_constant_cast(self, node: onnx.NodeProto, outside: set[str]) -> Iterator[onnx.NodeProto]:
        yield node
        if node.op_type == "Constant" and node.output[0] not in outside and node.attribute[0].HasField("t"):
            name, tensor = node.output[0], node.attribute[0].t
            if self._is_cast(tensor, name=name):
                cast = self._shorten(tensor, name=name)
                node.output[0] = cast.input[0]
                yield cast

    def _is_cast(self, tensor: TensorProto, *, name: str | None = None) -> bool:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < _MATRIX_AXES:
            return False
        values = numpy_helper.to_array(tensor)
        if values.size < LEAST_ELEMENTS:
            return False
        fits = self.precision == "bfloat16" or not _beyond(values)
        if not fits:
            self.too_large.append(name or tensor.name)
        return fits

    def _shorten(self, tensor: TensorProto, *, name: str) -> onnx.NodeProto:
        """Replace the tensor by its short form and return the node that gives the old name its value."""
        self.casts += 1
        short = f"{name}_{self.precision}"
        values = numpy_helper.to_array(tensor).astype(_TYPES[self.precision])
        tensor.CopyFrom(numpy_helper.from_array(values, short))
        return helper.make_node("Cast", [short], [name], name=f"cast_{name}", to=TensorProto.FLOAT)


def _beyond(values: npt.NDArray[np.float32]) -> bool:
    """Whether a finite value would become infinite, or the largest."""
    return bool(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)) > LARGEST_FLOAT16)
