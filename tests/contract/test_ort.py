"""The toolchain `ort`: what each field of its recipes does to the graph, and what stays as it is."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.domain.datasets import DatasetFormat
from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqDynamic, PtqStatic, Single
from app.domain.tensors import DType, Signature, TensorSpec
from tests import graphs
from tests.graphs import drawn, small
from tests.strangers import mobile, recurrent, residual, segmentation, several
from workers.stage_records.common import RowSource
from workers.stage_records.making import TransformSpec
from workers.toolchains import transform
from workers.toolchains.made import Made
from workers.toolchains.ort import observe

ORT = PtqStatic(toolchain="ort")
FLOAT = "float32.onnx"
ROWS = 24
make_node = helper.make_node


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    put(tmp_path, graphs.conv_classifier(), x=graphs.rows(ROWS) + 0.3)
    return tmp_path


def put(scratch: Path, graph: onnx.ModelProto, **rows: Any) -> None:
    onnx.save(graph, scratch / FLOAT)
    np.savez(scratch / "cal.npz", **rows)


def make(scratch: Path, recipe: Single) -> Made:
    graph = onnx.load(scratch / FLOAT)
    source = RowSource(path="cal.npz", format=DatasetFormat.NPZ, rows=tuple(range(ROWS)), preprocessing=None)
    spec = TransformSpec(artifact=FLOAT, signature=signature(graph), recipe=recipe, calibration=source)
    result = transform(spec, scratch, lambda _share, _words: None)
    return Made(graph=onnx.load(scratch / result.artifact), execution=result.execution, notes=result.notes)


def signature(graph: onnx.ModelProto) -> Signature:
    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        return TensorSpec(name=value.name, dtype=DType(kind.name), shape=tuple(dims), batch_axis=0)

    return Signature(
        inputs=tuple(spec(value) for value in graph.graph.input),
        outputs=tuple(spec(value) for value in graph.graph.output),
    )


def constants(graph: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def quantizers(made: Made, *, weights: bool) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Yield (scale, zero_point) of every DequantizeLinear on a weight, or on an activation."""
    known = constants(made.graph)
    for node in made.graph.graph.node:
        if node.op_type == "DequantizeLinear" and (node.input[0] in known) is weights:
            yield known[node.input[1]], known[node.input[2]]


def answers(graph: onnx.ModelProto, **rows: Any) -> list[npt.NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[npt.NDArray[Any]] = onnxruntime.InferenceSession(graph.SerializeToString(), options).run(None, rows)
    return found


def executed(graph: onnx.ModelProto, *kinds: str) -> list[str]:
    """Return the precision that each layer of these kinds runs in."""
    core = openvino.Core()
    model = core.read_model(graph.SerializeToString())
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    infos = [node.get_rt_info() for node in core.compile_model(model, "CPU", options).get_runtime_model().get_ops()]
    return [info["runtimePrecision"].astype(str) for info in infos if info["layerType"].astype(str) in kinds]


def test_symmetric_activations_are_unsigned_where_nothing_is_negative(scratch: Path) -> None:
    found = [(zero.dtype.name, int(zero)) for _, zero in quantizers(make(scratch, ORT), weights=False)]
    # the input, the two ReLUs (one of them through the pool)
    assert sorted(set(found)) == [("int8", 0), ("uint8", 0)]


def test_symmetric_activations_can_all_be_signed(scratch: Path) -> None:
    made = make(scratch, replace(ORT, activation_dtype="int8"))
    assert {(zero.dtype.name, int(zero)) for _, zero in quantizers(made, weights=False)} == {("int8", 0)}


def test_symmetric_unsigned_activations_have_their_zero_in_the_middle(scratch: Path) -> None:
    made = make(scratch, replace(ORT, activation_dtype="uint8"))
    assert {(zero.dtype.name, int(zero)) for _, zero in quantizers(made, weights=False)} == {
        ("uint8", 0),
        ("uint8", 128),
    }


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "uint8"), ("uint8", "uint8"), ("int8", "int8")])
def test_asymmetric_activations_have_a_zero_point_from_the_data(dtype: Any, expected: str, scratch: Path) -> None:
    made = make(scratch, replace(ORT, activations="asymmetric", activation_dtype=dtype))
    points = [zero for _, zero in quantizers(made, weights=False)]
    assert {zero.dtype.name for zero in points} == {expected}
    rows = np.load(scratch / "cal.npz")["x"]
    scale = (rows.max() - rows.min()) / 255
    # the nearest whole number to where zero lies in the range
    assert abs(int(points[0]) - np.iinfo(expected).min - (-rows.min() / scale)) <= 0.5 + 1e-3


def test_asymmetric_weights_have_zero_points(scratch: Path) -> None:
    for granularity in ("per_tensor", "per_channel"):
        made = make(scratch, PtqStatic(toolchain="ort", weights="asymmetric", weight_granularity=granularity))
        assert any((zero != 0).any() for _, zero in quantizers(made, weights=True))
    assert all((zero == 0).all() for _, zero in quantizers(make(scratch, ORT), weights=True))


def test_weight_granularity_sets_the_number_of_scales(scratch: Path) -> None:
    one = replace(ORT, weight_granularity="per_tensor")
    sizes = [[scale.size for scale, _ in quantizers(make(scratch, recipe), weights=True)] for recipe in (ORT, one)]
    assert sizes == [[16, 32, 4], [1, 1, 1]]


def test_a_weight_is_rounded_to_the_nearest_step(scratch: Path) -> None:
    made, plain = make(scratch, ORT), constants(graphs.conv_classifier())
    known = constants(made.graph)
    for name in ("w1", "w2", "w3"):
        scale = known[f"{name}_scale"].reshape(-1, *[1] * (plain[name].ndim - 1))
        # rounding moves a value by half a step at most; the division adds a float32 rounding
        assert np.abs(known[f"{name}_quantized"] * scale - plain[name]).max() <= 0.5 * scale.max() * (1 + 1e-5)


def test_biases_stay_as_they_are(scratch: Path) -> None:
    known, plain = constants(make(scratch, ORT).graph), constants(graphs.conv_classifier())
    for name in ("b1", "b2", "b3"):
        np.testing.assert_array_equal(known[name], plain[name])


def test_each_observer_gives_ranges_of_its_own(scratch: Path) -> None:
    observers: tuple[Any, ...] = ("min_max", "percentile", "mse", "entropy")
    found = [
        tuple(
            float(scale)
            for scale, _ in quantizers(make(scratch, PtqStatic(toolchain="ort", observer=each)), weights=False)
        )
        for each in observers
    ]
    assert len(set(found)) == len(observers)
    # none reaches further than the extremes, but for a rounding
    assert all(ours <= most * (1 + 1e-6) for scales in found[1:] for ours, most in zip(scales, found[0], strict=True))


def test_min_max_is_the_extremes_of_the_calibration_rows(scratch: Path) -> None:
    scale, _ = next(quantizers(make(scratch, replace(ORT, activation_dtype="int8")), weights=False))
    largest = np.abs(np.load(scratch / "cal.npz")["x"]).max()
    np.testing.assert_allclose(scale, largest / 127, rtol=2**-22)


def test_tensors_observed_in_several_passes_have_the_same_ranges(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(ORT, observer="mse")
    once = make(scratch, recipe)
    monkeypatch.setattr(observe, "MOST_VALUES", 100)
    assert make(scratch, recipe).graph == once.graph


@pytest.mark.parametrize("recipe", [ORT, replace(ORT, activations="asymmetric"), replace(ORT, activation_dtype="int8")])
@pytest.mark.parametrize("name", ["classifier", "residual", "mobile", "segmentation"])
def test_every_layer_runs_in_int8(name: str, recipe: PtqStatic, tmp_path: Path) -> None:
    built = {"residual": residual, "mobile": mobile, "segmentation": segmentation}
    stranger = built[name]() if name in built else None
    rows: Any = stranger.rows(ROWS) if stranger else {"x": graphs.rows(ROWS)}
    put(tmp_path, stranger.graph if stranger else graphs.conv_classifier(), **rows)
    found = executed(make(tmp_path, recipe).graph, "Convolution", "FullyConnected")
    assert found
    assert set(found) <= {"u8", "i8"}


def test_a_float_layer_reads_what_was_not_rounded(scratch: Path) -> None:
    made = make(scratch, replace(ORT, float_layers=("conv2",)))
    layer = next(node for node in made.graph.graph.node if node.name == "conv2")
    assert list(layer.input) == ["r1", "w2", "b2"]
    assert executed(made.graph, "Convolution").count("f32") == 1


def test_an_output_in_the_middle_is_not_rounded(tmp_path: Path) -> None:
    stranger = several()
    put(tmp_path, stranger.graph, **stranger.rows(ROWS))
    recipe = replace(ORT, float_layers=("conv",))
    rows = stranger.rows(4, seed=3)
    plain, found = answers(stranger.graph, **rows), answers(make(tmp_path, recipe).graph, **rows)
    np.testing.assert_array_equal(found[0], plain[0])


def test_an_output_that_is_quantized_further_on_is_handed_out_as_it_was(tmp_path: Path) -> None:
    graph = graphs.conv_classifier()
    graph.graph.output.append(helper.make_tensor_value_info("r1", TensorProto.FLOAT, ["batch", 16, 8, 8]))
    put(tmp_path, graph, x=graphs.rows(ROWS))
    made = make(tmp_path, replace(ORT, float_layers=("conv1",)))
    rows = graphs.rows(4, seed=3)
    np.testing.assert_array_equal(answers(made.graph, x=rows)[1], answers(graph, x=rows)[1])
    assert len(list(quantizers(made, weights=True))) == 2
    assert executed(made.graph, "Convolution") == ["f32", "u8"]


def endless() -> onnx.ModelProto:
    nodes = [
        make_node("Gemm", ["x", "w"], ["a"], name="first"),
        make_node("Add", ["a", "infinite"], ["b"]),
        make_node("MatMul", ["b", "v"], ["c"], name="second"),
        make_node("Clip", ["c", "low", "high"], ["y"]),
    ]
    weights = {
        "w": drawn(8, 6), "v": np.abs(drawn(6, 6)) + 0.1, "infinite": np.float32(np.inf),
        "low": np.float32(-1), "high": np.float32(1),
    }  # fmt: skip
    return small(nodes, inputs={"x": ("n", 8)}, outputs={"y": ("n", 6)}, weights=weights, opset=17)


@pytest.mark.parametrize("observer", ["min_max", "mse"])
def test_a_layer_that_reads_infinite_values_stays_in_float(observer: Any, tmp_path: Path) -> None:
    put(tmp_path, endless(), x=drawn(ROWS, 8, scale=1))
    made = make(tmp_path, replace(ORT, observer=observer))
    assert len(list(quantizers(made, weights=True))) == 1
    assert any("infinite" in note for note in made.notes)
    rows = drawn(3, 8, scale=1, seed=5)
    np.testing.assert_array_equal(answers(made.graph, x=rows)[0], answers(endless(), x=rows)[0])


def test_names_that_the_quantizer_would_take_are_no_trouble(tmp_path: Path) -> None:
    nodes = [
        make_node("Gemm", ["x", "w"], ["w_scale"], name="first"),
        make_node("Relu", ["w_scale"], ["x_QuantizeLinear_Output"]),
        make_node("Gemm", ["x_QuantizeLinear_Output", "v"], ["y"], name="second"),
    ]
    graph = small(
        nodes, inputs={"x": ("n", 8)}, outputs={"y": ("n", 6)}, weights={"w": drawn(8, 16), "v": drawn(16, 6)}
    )
    put(tmp_path, graph, x=drawn(ROWS, 8, scale=1))
    rows = drawn(3, 8, scale=1, seed=5)
    found, expected = answers(make(tmp_path, ORT).graph, x=rows)[0], answers(graph, x=rows)[0]
    # 8 bits through two layers: hundredths of the energy at most
    assert ((found - expected) ** 2).sum() < 0.05 * (expected**2).sum()


def test_static_quantization_needs_rows(scratch: Path) -> None:
    spec = TransformSpec(artifact=FLOAT, signature=signature(graphs.conv_classifier()), recipe=ORT, calibration=None)
    with pytest.raises(ToolchainFailed, match="needs calibration rows"):
        transform(spec, scratch, lambda _share, _words: None)


def test_nothing_left_to_quantize_is_said(scratch: Path) -> None:
    names = tuple(node.name for node in graphs.conv_classifier().graph.node)
    for recipe in (replace(ORT, float_layers=names), PtqDynamic(toolchain="ort", float_layers=names)):
        with pytest.raises(ToolchainFailed, match="no layer to quantize"):
            make(scratch, recipe)


DYNAMIC = PtqDynamic(toolchain="ort")


def test_dynamic_quantization_uses_standard_operators(scratch: Path) -> None:
    kinds = {node.op_type for node in make(scratch, DYNAMIC).graph.graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"} <= kinds


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_recurrent_layer_stays_in_float_and_is_told(kind: str, tmp_path: Path) -> None:
    stranger = recurrent(kind)
    put(tmp_path, stranger.graph, **stranger.rows(ROWS))
    for recipe in (DYNAMIC, ORT):
        made = make(tmp_path, recipe)
        assert kind in {node.op_type for node in made.graph.graph.node}
        assert any(kind in note and "float" in note for note in made.notes)


def test_stale_shapes_of_an_exporter_are_no_trouble(scratch: Path) -> None:
    graph = graphs.conv_classifier()
    graph.graph.value_info.append(helper.make_tensor_value_info("c1", TensorProto.FLOAT, [7, 7]))
    onnx.save(graph, scratch / FLOAT)
    for recipe in (DYNAMIC, ORT):
        assert make(scratch, recipe).graph.graph.node


def test_a_dynamic_float_layer_keeps_its_weight(scratch: Path) -> None:
    known = constants(make(scratch, replace(DYNAMIC, float_layers=("fc",))).graph)
    plain = constants(graphs.conv_classifier())["w3"]
    assert any(array.dtype == np.float32 and array.size == plain.size for array in known.values())


def test_dynamic_weights_can_be_asymmetric_and_per_tensor(scratch: Path) -> None:
    known = constants(make(scratch, replace(DYNAMIC, weights="asymmetric")).graph)
    assert any((array != 0).any() for name, array in known.items() if name.endswith("w3_zero_point"))
    one = constants(make(scratch, replace(DYNAMIC, weight_granularity="per_tensor")).graph)
    assert all(array.size == 1 for name, array in one.items() if name.endswith("_scale"))
