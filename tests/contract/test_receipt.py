"""The kernel receipt says what OpenVINO did with each layer, under the names that recipes use."""

import logging
from pathlib import Path

import nncf
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from app.domain.evidence import LayerReceipt, Receipt
from app.domain.reports import Kernels, Layer
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution
from tests import graphs
from workers.measure.kernels import summed
from workers.measure.receipt import receipt
from workers.measure.timing import measure
from workers.stage_records.measuring import Form, TimeResult, TimeSpec

VNNI = "avx512_vnni" in Path("/proc/cpuinfo").read_text()
FLOAT32 = Form(name="float32", artifact="float32.onnx", execution=Execution())


def quiet(_share: float, _words: str) -> None:
    """Take a stage's progress and do nothing."""


def timed(scratch: Path, execution: Execution, *, inputs: TensorSpec, output: TensorSpec) -> TimeResult:
    variant = Form(name="variant", artifact="variant.onnx", execution=execution)
    spec = TimeSpec(
        forms=(FLOAT32, variant), signature=Signature(inputs=(inputs,), outputs=(output,)), runs=5, batch_size=2
    )
    return measure(spec, scratch, quiet)


def kept(found: TimeResult) -> Receipt:
    assert found.receipt is not None
    return found.receipt


def by_name(found: Receipt) -> dict[str, LayerReceipt]:
    return {layer.name: layer for layer in found.layers}


X = TensorSpec(name=graphs.INPUT, dtype=DType.FLOAT32, shape=(None, 3, 8, 8))
LOGITS = TensorSpec(name=graphs.OUTPUT, dtype=DType.FLOAT32, shape=(None, 4))


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> TimeResult:
    """A classifier beside what NNCF made of it, all but `conv2` quantized."""
    scratch = tmp_path_factory.mktemp("convolutional")
    nncf.set_log_level(logging.ERROR)
    rows = nncf.Dataset([{graphs.INPUT: row[np.newaxis]} for row in graphs.rows(8)])
    graph = graphs.conv_classifier()
    onnx.save(graph, scratch / "float32.onnx")
    made = nncf.quantize(graph, rows, subset_size=8, ignored_scope=nncf.IgnoredScope(names=["conv2"]))
    onnx.save(made, scratch / "variant.onnx")
    return timed(scratch, Execution(), inputs=X, output=LOGITS)


def test_every_computing_layer_is_named_as_in_float32(convolutional: TimeResult) -> None:
    layers = kept(convolutional).layers
    assert [(layer.name, layer.kind) for layer in layers] == [("conv1", "Conv"), ("conv2", "Conv"), ("fc", "Gemm")]
    assert all(layer.float32 is not None and layer.variant is not None for layer in layers)


def test_what_the_graph_quantizes_ran_in_int8_and_the_rest_in_float(convolutional: TimeResult) -> None:
    layers = by_name(kept(convolutional))
    assert {name: layer.quantized for name, layer in layers.items()} == {"conv1": True, "conv2": False, "fc": True}
    ran = {name: layer.variant.precision for name, layer in layers.items() if layer.variant is not None}
    assert ran["conv2"] == "f32"
    assert {ran["conv1"], ran["fc"]} <= {"u8", "i8"}
    assert kept(convolutional).fallbacks == ()


def test_layers_name_the_nodes_that_were_fused_into_them(convolutional: TimeResult) -> None:
    fused = {name for layer in convolutional.kernels["float32"].layers for name in layer.nodes}
    assert {"conv1", "relu1", "conv2", "relu2"} <= fused


def test_conversions_are_counted_and_named(convolutional: TimeResult) -> None:
    found = kept(convolutional)
    assert 0 <= found.conversion_share < 1
    assert len(found.conversions) <= 10
    names = {layer.name for layer in convolutional.kernels["variant"].layers}
    assert set(found.conversions) <= names


def test_one_form_alone_has_no_receipt(tmp_path: Path) -> None:
    onnx.save(graphs.conv_classifier(), tmp_path / "float32.onnx")
    spec = TimeSpec(forms=(FLOAT32,), signature=Signature(inputs=(X,), outputs=(LOGITS,)), runs=5)
    assert measure(spec, tmp_path, quiet).receipt is None


def layer(name: str, kind: str, kernel: str, time: float, *, nodes: tuple[str, ...] = ()) -> Layer:
    precision = kernel.rpartition("_")[2].lower()
    return Layer(name=name, kind=kind, precision=precision, implementation=kernel, microseconds=time, nodes=nodes)


def ran(*layers: Layer) -> Kernels:
    return summed(layers)


def chain(*, quantized: bool) -> onnx.ModelProto:
    """Return a product and a Relu, behind quantizers or not; the model itself has a Transpose."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.int8 if quantized else np.float32), "w")
    data = ("x_dq", "w_dq") if quantized else ("x", "w")
    nodes = [
        helper.make_node("MatMul", data, ["m"], name="layer"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        helper.make_node("Transpose", ["r"], ["y"], name="turn"),
    ]
    if quantized:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s"], ["x_q"], name="x/q"),
            helper.make_node("DequantizeLinear", ["x_q", "s"], ["x_dq"], name="x/dq"),
            helper.make_node("DequantizeLinear", ["w", "s"], ["w_dq"], name="w/dq"),
            *nodes,
        ]
    scale = numpy_helper.from_array(np.float32(1), "s")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight, scale] if quantized else [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


PLAIN = ran(layer("layer", "FullyConnected", "gemm_f32", 9.0, nodes=("layer", "relu")))


def test_a_quantized_layer_that_ran_in_float_is_a_fallback() -> None:
    after = ran(layer("layer", "FullyConnected", "gemm_f32", 9.0, nodes=("layer",)))
    assert receipt(chain(quantized=False), chain(quantized=True), PLAIN, after).fallbacks == ("layer",)


def test_a_layer_that_goes_by_the_name_of_what_follows_is_found() -> None:
    after = ran(layer("relu/something", "FullyConnected", "gemm_I8", 3.0, nodes=("relu/something",)))
    found = receipt(chain(quantized=False), chain(quantized=True), PLAIN, after)
    assert found.layers[0].variant is not None
    assert found.layers[0].variant.microseconds == 3.0


def test_a_layer_in_parts_has_their_sum() -> None:
    after = ran(
        layer("layer", "FullyConnected", "gemm_I8", 3.0),
        layer("layer/rest", "MatMul", "gemm_f32", 2.0, nodes=("layer/rest",)),
    )
    run = receipt(chain(quantized=False), chain(quantized=True), PLAIN, after).layers[0].variant
    assert run is not None
    assert (run.precision, run.implementation, run.microseconds) == ("i8, f32", "gemm_I8, gemm_f32", 5.0)


def test_the_models_own_transpose_is_no_conversion_and_the_engines_is() -> None:
    after = ran(
        layer("layer", "FullyConnected", "gemm_I8", 5.0),
        layer("turn", "Transpose", "jit_f32", 2.0, nodes=("turn",)),
        layer("x_abc_acb_layer", "Reorder", "jit_I8", 2.0),
        layer("x/q", "FakeQuantize", "jit_f32", 1.0, nodes=("x/q",)),
    )
    found = receipt(chain(quantized=False), chain(quantized=True), PLAIN, after)
    assert found.conversion_share == pytest.approx(0.3)
    assert found.conversions == ("x_abc_acb_layer", "x/q")


def test_a_recurrent_layer_is_found_although_its_name_is_lost(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (2, 32, 6), "r": (2, 32, 8)}
    stored = [numpy_helper.from_array(rng.normal(0, 1, each).astype(np.float32), name) for name, each in shapes.items()]
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="lstm", direction="bidirectional", hidden_size=8)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 1, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 2, 1, 8])
    graph = helper.make_graph([node], "g", [x], [y], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    for name in ("float32", "variant"):
        onnx.save(made, tmp_path / f"{name}.onnx")
    specs = [
        TensorSpec(name=name, dtype=DType.FLOAT32, shape=shape, batch_axis=None)
        for name, shape in (("x", (5, 1, 6)), ("y", (5, 2, 1, 8)))
    ]
    layers = kept(timed(tmp_path, Execution(), inputs=specs[0], output=specs[1])).layers
    assert [(layer.name, layer.kind) for layer in layers] == [("lstm", "LSTM")]
    assert layers[0].variant is not None
    assert layers[0].variant.precision == "f32"


def test_layers_that_were_traced_anew_are_paired_in_order() -> None:
    renamed = chain(quantized=True)
    for node in renamed.graph.node:
        node.name = f"other_{node.name}"
        node.output[0] = node.output[0] if node.output[0] == "y" else f"other_{node.output[0]}"
        for index, name in enumerate(node.input):
            node.input[index] = name if name in ("x", "w", "s") else f"other_{name}"
    after = ran(layer("other_layer", "FullyConnected", "gemm_I8", 3.0))
    found = receipt(chain(quantized=False), renamed, PLAIN, after).layers[0]
    assert (found.name, found.quantized) == ("layer", True)


WIDTH = 64


def products() -> onnx.ModelProto:
    """Return two products with biases, float32[N, WIDTH] to float32[N, WIDTH]."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.2, (WIDTH, WIDTH)).astype(np.float32) for _ in range(2)]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="up"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="down"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(weight, name) for weight, name in zip(weights, ("w1", "w2"), strict=True)]
    graph = helper.make_graph(nodes, "products", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def weights_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("weights")
    nncf.set_log_level(logging.ERROR)
    onnx.save(products(), scratch / "float32.onnx")
    made = nncf.compress_weights(products(), mode=nncf.CompressWeightsMode.INT8_SYM)
    onnx.save(made, scratch / "variant.onnx")
    return scratch


IN, OUT = (TensorSpec(name=name, dtype=DType.FLOAT32, shape=(None, WIDTH)) for name in ("x", "y"))


def test_weights_alone_in_int8_are_float_arithmetic(weights_alone: Path) -> None:
    found = timed(weights_alone, Execution(), inputs=IN, output=OUT)
    assert (found.kernels["variant"].int8_layers, found.kernels["variant"].float_layers) == (0, 2)
    assert not any(layer.quantized for layer in kept(found).layers)


@pytest.mark.skipif(not VNNI, reason="without VNNI OpenVINO quantizes no activations on the fly")
def test_activations_quantized_on_the_fly_are_proven_and_said(weights_alone: Path) -> None:
    found = timed(weights_alone, Execution(dynamic_group_size=32), inputs=IN, output=OUT)
    assert (found.kernels["variant"].int8_layers, found.kernels["variant"].float_layers) == (2, 0)
    for layer in kept(found).layers:
        assert layer.variant is not None
        assert layer.variant.implementation.endswith("activations quantized in groups of 32")


def test_a_group_size_that_the_engine_does_not_take_proves_nothing(weights_alone: Path) -> None:
    # OpenVINO takes multiples of 16 and ignores others without a word
    found = timed(weights_alone, Execution(dynamic_group_size=20), inputs=IN, output=OUT)
    assert found.kernels["variant"].int8_layers == 0


def test_layers_that_onnxruntimes_dynamic_toolchain_renamed_are_found(tmp_path: Path) -> None:
    onnx.save(products(), tmp_path / "float32.onnx")
    quantize_dynamic(tmp_path / "float32.onnx", tmp_path / "variant.onnx")
    layers = kept(timed(tmp_path, Execution(), inputs=IN, output=OUT)).layers
    assert [layer.name for layer in layers] == ["up", "down"]
    assert all(layer.variant is not None and not layer.quantized for layer in layers)
