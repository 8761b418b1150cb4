"""What stays of a QDQ graph when only some of its layers stay quantized: the variant, float32, and all between."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests import graphs
from workers.measure.constants import session
from workers.measure.qdq import Quantized

Array = NDArray[Any]
ROWS = graphs.rows(16)
LAYERS = ("conv1", "conv2", "fc")


class Rows(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._rows: Iterator[Array] = iter(ROWS)

    def get_next(self) -> dict[str, Array] | None:
        row = next(self._rows, None)
        return None if row is None else {graphs.INPUT: row[np.newaxis]}


def by_nncf(_folder: Path, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize with per-channel weights and full bias correction."""
    nncf.set_log_level(logging.ERROR)
    rows = nncf.Dataset([{graphs.INPUT: row[np.newaxis]} for row in ROWS])
    made: onnx.ModelProto = nncf.quantize(graph, rows, subset_size=len(ROWS), fast_bias_correction=False)
    return made


def by_ort(folder: Path, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize with int32 biases, a quantized output, and every Relu left to the quantizer behind it."""
    onnx.save(graph, folder / "float32.onnx")
    quantize_static(
        folder / "float32.onnx",
        folder / "variant.onnx",
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(folder / "variant.onnx")


@pytest.fixture(scope="module", params=[by_nncf, by_ort])
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    make: Callable[[Path, onnx.ModelProto], onnx.ModelProto] = request.param
    return make(tmp_path_factory.mktemp("made"), graphs.conv_classifier())


def answers(graph: onnx.ModelProto, x: Array = ROWS) -> Array:
    """Return the first output, having checked that the graph is valid."""
    onnx.checker.check_model(graph, full_check=True)
    found: Array = session(graph).run(None, {graph.graph.input[0].name: x})[0]
    return found


def count(graph: onnx.ModelProto, op_type: str) -> int:
    return sum(node.op_type == op_type for node in graph.graph.node)


def test_every_computing_layer_is_found(variant: onnx.ModelProto) -> None:
    assert Quantized(variant, graphs.conv_classifier()).layers == LAYERS


def test_with_all_layers_it_answers_as_the_variant(variant: onnx.ModelProto) -> None:
    found = answers(Quantized(variant, graphs.conv_classifier()).only(LAYERS))
    assert np.array_equal(found, answers(variant))


def test_with_no_layer_it_answers_as_float32(variant: onnx.ModelProto) -> None:
    plain = Quantized(variant, graphs.conv_classifier()).only([])
    assert count(plain, "QuantizeLinear") == count(plain, "DequantizeLinear") == 0
    assert np.array_equal(answers(plain), answers(graphs.conv_classifier()))


def test_without_is_only_the_others(variant: onnx.ModelProto) -> None:
    quantized = Quantized(variant, graphs.conv_classifier())
    assert np.array_equal(answers(quantized.without(["conv1"])), answers(quantized.only(["conv2", "fc"])))


def test_every_quantizer_belongs_to_a_layer(variant: onnx.ModelProto) -> None:
    quantized = Quantized(variant, graphs.conv_classifier())
    kept = {node.name for layer in LAYERS for node in quantized.only([layer]).graph.node}
    assert {node.name for node in variant.graph.node if node.op_type.endswith("Linear")} <= kept


def test_each_layer_alone_changes_the_answers(variant: onnx.ModelProto) -> None:
    quantized = Quantized(variant, graphs.conv_classifier())
    plain = answers(quantized.only([]))
    assert all(not np.array_equal(answers(quantized.only([layer])), plain) for layer in LAYERS)


def weight(name: str, values: Array) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


def pair(source: str, *, scale: str = "s") -> list[NodeProto]:
    """Return the two quantizers of a tensor, signed with zero point 0."""
    return [
        helper.make_node("QuantizeLinear", [source, scale, "zero"], [f"{source}_q"], name=f"{source}/q"),
        helper.make_node("DequantizeLinear", [f"{source}_q", scale, "zero"], [f"{source}_dq"], name=f"{source}/dq"),
    ]


def model(nodes: list[NodeProto], weights: list[TensorProto], *, side: int = 6, axes: int = 2) -> onnx.ModelProto:
    """Return a checked graph from x, float32[N, side], to y, which has as many axes."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", side])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"y{axis}" for axis in range(axes)])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made)
    return made


SCALE = 1 / 32
W = np.random.default_rng(0).normal(0, 1, (6, 6)).astype(np.float32)
V = np.random.default_rng(1).normal(0, 1, (6, 6)).astype(np.float32)
X = np.random.default_rng(2).normal(0, 1, (5, 6)).astype(np.float32)


def rounded(values: Array, scale: float = SCALE, *, bits: int = 8) -> Array:
    """Quantize and dequantize, as the standard says: to the nearest, halves to even, symmetric."""
    found: Array = np.clip(np.round(values / np.float32(scale)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (found * np.float32(scale)).astype(np.float32)


def integers(values: Array) -> Array:
    return np.clip(np.round(values / SCALE), -128, 127).astype(np.int8)


def dequantized(name: str) -> NodeProto:
    return helper.make_node("DequantizeLinear", [f"{name}_q", "s", "zero"], [f"{name}_dq"], name=f"{name}/dq")


CONSTANTS = [weight("s", np.array(SCALE, np.float32)), weight("zero", np.array(0, np.int8))]


def test_a_shared_quantizer_stays_for_one_layer_and_goes_for_the_other() -> None:
    def made(suffix: str) -> list[NodeProto]:
        return [
            helper.make_node("MatMul", [f"x{suffix}", f"w{suffix}"], ["a"], name="one"),
            helper.make_node("MatMul", [f"x{suffix}", f"v{suffix}"], ["b"], name="two"),
            helper.make_node("Concat", ["a", "b"], ["y"], name="end", axis=1),
        ]

    plain = model(made(""), [weight("w", W), weight("v", V)])
    stored = [*CONSTANTS, weight("w_q", integers(W)), weight("v_q", integers(V))]
    quantized = model([*pair("x"), dequantized("w"), dequantized("v"), *made("_dq")], stored)
    found = answers(Quantized(quantized, plain).only(["two"]), X)
    # float32 sums of six products, in any order, are within 6 * 2^-24 of their absolute terms
    np.testing.assert_allclose(found, np.hstack([X @ W, rounded(X) @ rounded(V)]), atol=1e-5)


def test_what_only_moves_between_quantizers_and_layer_is_seen_through() -> None:
    shape = weight("shape", np.array([-1, 2, 3], np.int64))

    def made(before: str, after: str, weights: str) -> list[NodeProto]:
        return [
            helper.make_node("Reshape", [before, "shape"], [f"{before}_r"], name="reshape"),
            helper.make_node("Transpose", [after], ["t"], name="turn", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["t", weights], ["y"], name="layer"),
        ]

    plain = model(made("x", "x_r", "w"), [shape, weight("w", W[:2, :2])], axes=3)
    first, second = pair("x")
    second.input[0] = "x_q_r"
    reshape, turn, layer = made("x_q", "x_dq", "w_dq")
    stored = [shape, *CONSTANTS, weight("w_q", integers(W[:2, :2]))]
    cut = Quantized(model([first, reshape, second, dequantized("w"), turn, layer], stored, axes=3), plain)
    assert cut.layers == ("layer",)
    assert np.array_equal(answers(cut.only([]), X), answers(plain, X))
    turned = rounded(X).reshape(-1, 2, 3).transpose(0, 2, 1)
    np.testing.assert_allclose(answers(cut.only(["layer"]), X), turned @ rounded(W[:2, :2]), atol=1e-5)


def test_a_quantizer_in_front_of_an_add_goes_with_the_layer_before_it() -> None:
    def made(weights: str, added: str) -> list[NodeProto]:
        return [
            helper.make_node("MatMul", ["x", weights], ["a"], name="layer"),
            helper.make_node("Add", [added, "x"], ["y"], name="add"),
        ]

    plain = model(made("w", "a"), [weight("w", W)])
    layer, add = made("w_dq", "a_dq")
    quantized = model([dequantized("w"), layer, *pair("a"), add], [*CONSTANTS, weight("w_q", integers(W))])
    cut = Quantized(quantized, plain)
    assert count(cut.only(["layer"]), "QuantizeLinear") == 1
    assert np.array_equal(answers(cut.only([]), X), answers(plain, X))


def test_weights_of_4_bits_per_channel_are_taken_back_to_float() -> None:
    plain = model([helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")], [weight("w", W)])
    scales = np.abs(W).max(axis=0) / 7
    whole = np.round(W / scales).astype(np.int8)
    packed = helper.make_tensor("w_q", TensorProto.INT4, W.shape, whole.reshape(-1).tolist())
    nodes = [
        helper.make_node("DequantizeLinear", ["w_q", "scales"], ["w_dq"], name="w/dq", axis=1),
        helper.make_node("MatMul", ["x", "w_dq"], ["y"], name="layer"),
    ]
    cut = Quantized(model(nodes, [packed, weight("scales", scales)]), plain)
    assert cut.layers == ("layer",)
    assert np.array_equal(answers(cut.only([]), X), answers(plain, X))
    np.testing.assert_allclose(answers(cut.only(["layer"]), X), X @ (whole * scales), atol=1e-5)


def test_scaled_channels_get_their_float_weights_with_the_scales() -> None:
    rng = np.random.default_rng(3)
    wide, deep = rng.normal(0, 1, (64, 48)).astype(np.float32), rng.normal(0, 1, (48, 32)).astype(np.float32)
    gains = np.exp(rng.normal(0, 0.5, 48)).astype(np.float32)

    def made(one: str, two: str) -> list[NodeProto]:
        return [
            helper.make_node("MatMul", ["x", one], ["a"], name="one"),
            helper.make_node("Relu", ["a"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", two], ["y"], name="two"),
        ]

    plain = model(made("w", "v"), [weight("w", wide), weight("v", deep)], side=64)
    steps = {
        name: np.array(np.abs(array).max() / 127, np.float32)
        for name, array in (("w", wide * gains), ("v", deep / gains[:, None]))
    }
    nodes = [
        helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s"], [f"{name}_dq"], name=name) for name in "wv"
    ]
    stored = [
        weight("w_q", np.round(wide * gains / steps["w"]).astype(np.int8)),
        weight("v_q", np.round(deep / gains[:, None] / steps["v"]).astype(np.int8)),
        *(weight(f"{name}_s", step) for name, step in steps.items()),
    ]
    x = rng.normal(0, 1, (8, 64)).astype(np.float32)
    variant = model([*nodes, *made("w_dq", "v_dq")], stored, side=64)
    wanted, size = answers(plain, x), float(np.abs(answers(plain, x)).max())
    rounding = np.abs(answers(variant, x) - wanted).max() / size
    found = np.abs(answers(Quantized(variant, plain).only([]), x) - wanted).max() / size
    # each scale averages the rounding of 32 weights or more, so errors shrink by about sqrt(32)
    assert found < rounding / 3


def test_a_batch_normalization_that_was_folded_is_folded_into_the_float_weights() -> None:
    rng = np.random.default_rng(4)
    kernel = rng.normal(0, 1, (8, 3, 3, 3)).astype(np.float32)
    gamma, variance = rng.uniform(0.5, 2, 8).astype(np.float32), rng.uniform(0.5, 2, 8).astype(np.float32)
    beta, mean = rng.normal(0, 1, (2, 8)).astype(np.float32)
    gain = gamma / np.sqrt(variance + 1e-5)
    values = {"g": gamma, "b": beta, "m": mean, "v": variance}

    def convolution(weights: list[str], output: str) -> NodeProto:
        return helper.make_node("Conv", ["x", *weights], [output], name="conv")

    def images(nodes: list[NodeProto], weights: list[TensorProto]) -> onnx.ModelProto:
        made = model(nodes, weights, axes=4)
        made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8]))
        return made

    plain = images(
        [convolution(["w"], "c"), helper.make_node("BatchNormalization", ["c", *values], ["y"], name="bn")],
        [weight("w", kernel), *(weight(name, value) for name, value in values.items())],
    )
    scales = np.abs(kernel * gain.reshape(-1, 1, 1, 1)).max(axis=(1, 2, 3)) / 127
    whole = np.round(kernel * (gain / scales).reshape(-1, 1, 1, 1)).astype(np.int8)
    stored = [weight("w_q", whole), weight("s", scales), weight("bias", beta - mean * gain)]
    dequantize = helper.make_node("DequantizeLinear", ["w_q", "s"], ["w_dq"], name="dq", axis=0)
    variant = images([dequantize, convolution(["w_dq", "bias"], "y")], stored)
    # folding rounds each weight twice in float32: errors of some 2^-24 of sums of 27 terms
    np.testing.assert_allclose(answers(Quantized(variant, plain).only([])), answers(plain), atol=1e-4)


def test_a_layer_inside_an_if_reads_the_float_tensor() -> None:
    def branch(name: str, source: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", "k"])
        return helper.make_graph([helper.make_node("Relu", [source], [f"{name}_y"], name=name)], name, [], [out])

    def made(weights: str, source: str) -> list[NodeProto]:
        choice = helper.make_node(
            "If", ["yes"], ["y"], name="if", then_branch=branch("then", source), else_branch=branch("else", source)
        )
        return [helper.make_node("MatMul", ["x", weights], ["a"], name="layer"), choice]

    yes = weight("yes", np.ones((), np.bool_))
    plain = model(made("w", "a"), [weight("w", W), yes])
    layer, choice = made("w_dq", "a_dq")
    stored = [*CONSTANTS, weight("w_q", integers(W)), yes]
    cut = Quantized(model([dequantized("w"), layer, *pair("a"), choice], stored), plain)
    assert np.array_equal(answers(cut.only([]), X), answers(plain, X))
    assert count(cut.only(["layer"]), "QuantizeLinear") == 1
