"""Every technique keeps one contract, and every field of a recipe really changes the graph."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.domain.datasets import DatasetFormat
from app.domain.errors import DatasetUnfit, PrecisionUnavailable, ToolchainFailed
from app.domain.recipes import Cast, PtqStatic, Single
from app.domain.tensors import DType, Signature, TensorSpec
from tests import graphs
from workers.stages import RowSource, TransformSpec
from workers.toolchains import transform

ROWS = 24
FLOAT = "float32.onnx"
Steps = list[tuple[float, str]]

HAS_BFLOAT16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no bfloat16 instructions")
EVERY_RECIPE = [PtqStatic(), pytest.param(Cast(), marks=needs_bfloat16)]


def signature(*, batch: int | None = None) -> Signature:
    axis = 0 if batch is None else None
    return Signature(
        inputs=(TensorSpec(name=graphs.INPUT, dtype=DType.FLOAT32, shape=(batch, 3, 8, 8), batch_axis=axis),),
        outputs=(TensorSpec(name=graphs.OUTPUT, dtype=DType.FLOAT32, shape=(batch, 4), batch_axis=axis),),
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    onnx.save(graphs.conv_classifier(), tmp_path / FLOAT)
    graphs.save_dataset(tmp_path / "cal.npz", graphs.rows(ROWS) + 0.3)
    return tmp_path


def make(
    scratch: Path, recipe: Single, *, rows: int = ROWS, batch: int | None = None, steps: Steps | None = None
) -> onnx.ModelProto:
    source = RowSource(path="cal.npz", format=DatasetFormat.NPZ, rows=tuple(range(rows)), preprocessing=None)
    spec = TransformSpec(artifact=FLOAT, signature=signature(batch=batch), recipe=recipe, calibration=source)
    told: Steps = [] if steps is None else steps
    result = transform(spec, scratch, lambda share, words: told.append((share, words)))
    return onnx.load(scratch / result.artifact)


def constants(graph: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def quantizers(graph: onnx.ModelProto, *, weights: bool) -> Iterator[tuple[npt.NDArray[np.generic], ...]]:
    """Yield (scale, zero_point) of every DequantizeLinear on a weight, or on an activation."""
    known = constants(graph)
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and (node.input[0] in known) is weights:
            yield known[node.input[1]], known[node.input[2]]


def biases(graph: onnx.ModelProto) -> npt.NDArray[np.float32]:
    known = constants(graph)
    return np.concatenate([known[name].ravel() for name in ("b1", "b2", "b3") if name in known]).astype(np.float32)


def answers(path: Path, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = onnxruntime.InferenceSession(str(path)).run(None, {graphs.INPUT: rows})[0]
    return found


@pytest.mark.parametrize("recipe", EVERY_RECIPE)
def test_a_variant_is_smaller_runs_in_another_engine_and_takes_any_batch(recipe: Single, scratch: Path) -> None:
    made = make(scratch, recipe)
    variant = scratch / "out/variant.onnx"
    assert variant.stat().st_size < (scratch / FLOAT).stat().st_size
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    rows = graphs.rows(5, seed=3)
    plain = answers(scratch / FLOAT, rows)
    # 8 bits through three layers leave noise of a hundredth of the energy; a wrong graph, of about all of it
    assert ((answers(variant, rows) - plain) ** 2).sum() < 0.1 * (plain**2).sum()


@pytest.mark.parametrize("recipe", EVERY_RECIPE)
def test_a_variant_carries_nobody_s_notes(recipe: Single, scratch: Path) -> None:
    noted = graphs.conv_classifier()
    noted.doc_string = noted.graph.node[0].doc_string = "made by somebody"
    noted.metadata_props.add(key="path", value="secret")
    onnx.save(noted, scratch / FLOAT)
    make(scratch, recipe)
    content = (scratch / "out/variant.onnx").read_bytes()
    assert b"somebody" not in content
    assert b"secret" not in content


def test_a_graph_fixed_to_one_row_is_quantized(scratch: Path) -> None:
    fixed = graphs.conv_classifier()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, scratch / FLOAT)
    assert any(True for _ in quantizers(make(scratch, PtqStatic(), batch=1), weights=True))


def test_an_old_opset_is_raised(scratch: Path) -> None:
    old = graphs.conv_classifier()
    old.opset_import[0].version = 11
    onnx.save(old, scratch / FLOAT)
    assert make(scratch, PtqStatic()).opset_import[0].version >= 13


def test_weights_are_stored_in_8_bits(scratch: Path) -> None:
    made = make(scratch, PtqStatic())
    large = [tensor.data_type for tensor in made.graph.initializer if len(tensor.dims) > 1]
    assert large == [TensorProto.INT8] * 3


def test_symmetric_activations_have_no_zero_point(scratch: Path) -> None:
    made = make(scratch, PtqStatic(activations="symmetric"))
    assert all((zero == 0).all() for _, zero in quantizers(made, weights=False))


def test_asymmetric_activations_have_zero_points(scratch: Path) -> None:
    made = make(scratch, PtqStatic(activations="asymmetric"))
    assert any((zero != 0).any() for _, zero in quantizers(made, weights=False))


def test_symmetric_weights_have_no_zero_point(scratch: Path) -> None:
    assert all((zero == 0).all() for _, zero in quantizers(make(scratch, PtqStatic()), weights=True))


def test_asymmetric_weights_have_zero_points(scratch: Path) -> None:
    made = make(scratch, PtqStatic(weights="asymmetric"))
    assert any((zero != 0).any() for _, zero in quantizers(made, weights=True))


@pytest.mark.parametrize("weights", ["symmetric", "asymmetric"])
def test_weight_granularity_sets_the_number_of_scales(weights: str, scratch: Path) -> None:
    recipe = PtqStatic(weights="symmetric" if weights == "symmetric" else "asymmetric")
    per_channel = [scale.size for scale, _ in quantizers(make(scratch, recipe), weights=True)]
    one = PtqStatic(weights=recipe.weights, weight_granularity="per_tensor")
    per_tensor = [scale.size for scale, _ in quantizers(make(scratch, one), weights=True)]
    assert (per_channel, per_tensor) == ([16, 32, 4], [1, 1, 1])


def test_per_channel_activations_are_refused_where_a_layer_cannot(scratch: Path) -> None:
    with pytest.raises(ToolchainFailed, match=r"'conv1' takes one scale .* activation_granularity to per_tensor"):
        make(scratch, PtqStatic(activation_granularity="per_channel"))


def depthwise() -> onnx.ModelProto:
    """Return a graph whose one layer is a depthwise convolution, which takes a scale per input channel."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)
        for name, shape in (("w", (3, 1, 3, 3)), ("b", (3,)))
    ]
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in (graphs.INPUT, graphs.OUTPUT)
    ]
    node = helper.make_node("Conv", [graphs.INPUT, "w", "b"], [graphs.OUTPUT], name="dw", group=3, pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "depthwise", value[:1], value[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_per_channel_activations_are_honoured_where_every_layer_can(scratch: Path) -> None:
    onnx.save(depthwise(), scratch / FLOAT)
    made = make(scratch, PtqStatic(activation_granularity="per_channel"))
    assert [scale.shape for scale, _ in quantizers(made, weights=False)] == [(3,)]


def test_calibration_rows_set_the_ranges(scratch: Path) -> None:
    few = [float(scale) for scale, _ in quantizers(make(scratch, PtqStatic(), rows=1), weights=False)]
    many = [float(scale) for scale, _ in quantizers(make(scratch, PtqStatic()), weights=False)]
    assert few != many


def test_every_calibration_row_is_read_and_told(scratch: Path) -> None:
    steps: Steps = []
    make(scratch, PtqStatic(), steps=steps)
    assert [words for _, words in steps if "calibrating" in words][-1] == f"calibrating: {ROWS} of {ROWS} rows"
    shares = [share for share, _ in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_bias_correction_none_leaves_the_biases(scratch: Path) -> None:
    made = make(scratch, PtqStatic(bias_correction="none"))
    np.testing.assert_array_equal(biases(made), biases(graphs.conv_classifier()))


def test_fast_and_full_bias_correction_differ(scratch: Path) -> None:
    fast, full = (make(scratch, PtqStatic(bias_correction=kind)) for kind in ("fast", "full"))
    plain = biases(graphs.conv_classifier())
    assert np.abs(biases(fast) - plain).max() > 0
    assert np.abs(biases(full) - plain).max() > 0
    assert np.abs(biases(fast) - biases(full)).max() > 0


def test_float_layers_stay_in_float(scratch: Path) -> None:
    made = make(scratch, PtqStatic(float_layers=("conv2", "fc")))
    kept = [tensor.name for tensor in made.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert {"w2", "w3"} <= set(kept)
    assert len(list(quantizers(made, weights=True))) == 1


def test_an_unknown_float_layer_is_refused_with_names_like_it(scratch: Path) -> None:
    with pytest.raises(ToolchainFailed, match=r"'conv9', but the graph has no such node; .* conv1"):
        make(scratch, PtqStatic(float_layers=("conv9",)))


def test_a_recipe_that_leaves_nothing_to_quantize_fails(scratch: Path) -> None:
    names = tuple(node.name for node in graphs.conv_classifier().graph.node)
    with pytest.raises(ToolchainFailed, match="no layer to quantize"):
        make(scratch, PtqStatic(float_layers=names))


def test_calibration_rows_of_another_shape_are_refused(scratch: Path) -> None:
    graphs.save_dataset(scratch / "cal.npz", graphs.rows(ROWS, side=9))
    with pytest.raises(DatasetUnfit, match="the model takes"):
        make(scratch, PtqStatic())


@needs_bfloat16
def test_a_graph_without_weights_cannot_be_cast(scratch: Path) -> None:
    relu = helper.make_node("Relu", [graphs.INPUT], [graphs.OUTPUT])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("x", "logits")]
    graph = helper.make_graph([relu], "relu", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), scratch / FLOAT)
    with pytest.raises(ToolchainFailed, match="no float32 weight"):
        make(scratch, Cast())


@needs_bfloat16
def test_a_cast_stores_weights_in_bfloat16_and_keeps_the_biases(scratch: Path) -> None:
    made = make(scratch, Cast())
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert kinds == {
        "w1_bfloat16": TensorProto.BFLOAT16,
        "w2_bfloat16": TensorProto.BFLOAT16,
        "w3_bfloat16": TensorProto.BFLOAT16,
        "b1": TensorProto.FLOAT,
        "b2": TensorProto.FLOAT,
        "b3": TensorProto.FLOAT,
    }


class CoreOfAnOlderCpu:
    """Says what OpenVINO says where there are no bfloat16 instructions, which no test can bring about."""

    def get_property(self, _device: str, _name: str) -> list[str]:
        return ["FP32", "INT8"]


def test_a_cast_needs_the_cpu_s_instructions(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "Core", CoreOfAnOlderCpu)
    with pytest.raises(PrecisionUnavailable, match="no bfloat16 instructions"):
        make(scratch, Cast())


TELEMETRY = """
import workers.toolchains.nncf.ptq_static
from nncf.telemetry import wrapper
assert isinstance(wrapper.telemetry, wrapper.NNCFTelemetryStub), wrapper.telemetry
"""


def test_nncf_reports_to_nobody() -> None:
    ran = subprocess.run([sys.executable, "-c", TELEMETRY], capture_output=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()


ONNXRUNTIME = """
import workers.toolchains.finish
import onnxruntime
from tests import graphs
onnxruntime.InferenceSession(graphs.conv_classifier().SerializeToString())
"""


def test_onnxruntime_reports_to_nobody(tmp_path: Path) -> None:
    # it keeps its reports in a database below the home folder until they are sent, unless a CI job runs it
    quiet = {name: value for name, value in os.environ.items() if name not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    environment = {**quiet, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", ONNXRUNTIME], env=environment, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []
