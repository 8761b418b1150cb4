"""The rounding that a recipe's arithmetic allows, and no more: weights in 8 bits, weights in bfloat16."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import openvino
import pytest
from onnx import numpy_helper

from app.domain.datasets import DatasetFormat
from app.domain.recipes import Cast, PtqStatic, Single
from app.domain.tensors import DType, Signature, TensorSpec
from tests import graphs
from workers.stage_records.common import RowSource
from workers.stage_records.making import TransformSpec
from workers.toolchains import transform

needs_bfloat16 = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU has no bfloat16 instructions",
)
SIGNATURE = Signature(
    inputs=(TensorSpec(name=graphs.INPUT, dtype=DType.FLOAT32, shape=(None, 3, 8, 8)),),
    outputs=(TensorSpec(name=graphs.OUTPUT, dtype=DType.FLOAT32, shape=(None, 4)),),
)


def constants(graph: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def make(scratch: Path, recipe: Single) -> onnx.ModelProto:
    onnx.save(graphs.conv_classifier(), scratch / "float32.onnx")
    graphs.save_dataset(scratch / "cal.npz", graphs.rows(8))
    rows = RowSource(path="cal.npz", format=DatasetFormat.NPZ, rows=tuple(range(8)), preprocessing=None)
    spec = TransformSpec(artifact="float32.onnx", signature=SIGNATURE, recipe=recipe, calibration=rows)
    return onnx.load(scratch / transform(spec, scratch, lambda _share, _words: None).artifact)


RECIPES = [
    PtqStatic(),
    PtqStatic(weight_granularity="per_tensor"),
    PtqStatic(weights="asymmetric"),
    PtqStatic(weights="asymmetric", weight_granularity="per_tensor"),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_weight_is_off_by_half_a_scale_at_most(recipe: PtqStatic, tmp_path: Path) -> None:
    made, plain = constants(graph := make(tmp_path, recipe)), constants(graphs.conv_classifier())
    checked = 0
    for node in graph.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in made:
            continue
        stored, scale, zero = (made[name].astype(np.float64) for name in node.input)
        along = (-1, *([1] * (stored.ndim - 1))) if scale.ndim else ()
        weight = next(array for array in plain.values() if array.shape == stored.shape).astype(np.float64)
        error = np.abs((stored - zero.reshape(along)) * scale.reshape(along) - weight)
        # half a step from rounding; a float32 quotient may fall on the wrong side of a tie, by its own 2^-24
        assert (error <= scale.reshape(along) * (0.5 + 128 * 2**-23)).all()
        checked += 1
    assert checked == 3


@needs_bfloat16
def test_a_cast_weight_is_off_by_2_to_the_minus_8_of_itself_at_most(tmp_path: Path) -> None:
    made, plain = constants(make(tmp_path, Cast())), constants(graphs.conv_classifier())
    for name in ("w1", "w2", "w3"):
        # bfloat16 has 8 significant bits: its unit roundoff is 2^-8
        weight = plain[name].astype(np.float64)
        error = np.abs(made[f"{name}_bfloat16"].astype(np.float64) - weight)
        assert (error <= 2**-8 * np.abs(weight)).all()
