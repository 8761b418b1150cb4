"""A request after which the engine fails on every other: the runner notices, and another one takes over."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.domain.errors import RunnerCrashed
from app.serving.terms import PoolLimits
from tests.serving import serving, variant_of

pytestmark = pytest.mark.anyio

NAMES = ("a", "b")


def product() -> onnx.ModelProto:
    """Build a product of two matrices of any size."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", f"of_{name}"]) for name in NAMES]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])
    graph = helper.make_graph([helper.make_node("MatMul", list(NAMES), ["y"])], "product", values, [output])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    made.ir_version = 10
    return made


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_request_that_breaks_the_engine_for_good_takes_no_other_along(tmp_path: Path, threads: int) -> None:
    variant = variant_of(product(), tmp_path)
    good = {name: np.ones((2, 2), np.float32) for name in NAMES}
    unfit = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 7), np.float32)}
    async with serving(tmp_path, limits=PoolLimits(threads=threads)) as pool:
        await pool.infer(variant, good)
        with pytest.raises(RunnerCrashed):
            await pool.infer(variant, unfit)
        answers = [(await pool.infer(variant, good)).outputs["y"] for _ in range(3)]
    for answer in answers:
        np.testing.assert_array_equal(answer, np.full((2, 2), 2, np.float32))
