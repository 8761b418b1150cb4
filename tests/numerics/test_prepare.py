"""Preparing a graph leaves its answers what they were, and does what it says to the weights."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.domain.errors import ToolchainFailed
from app.domain.recipes import Cast, PtqStatic
from tests import graphs
from tests.graphs import drawn, small
from tests.strangers import loop
from workers.toolchains.prepare import prepare

make_node = helper.make_node
EQUALIZED = PtqStatic(channel_equalization=True)
# A value passes few float32 sums of a few hundred products: each rounds by 2**-24 of the largest term.
ROUNDING = 1e-5


def answers(graph: onnx.ModelProto, **inputs: npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[npt.NDArray[np.float32]] = onnxruntime.InferenceSession(graph.SerializeToString(), options).run(
        None, inputs
    )
    return found


def prepared(graph: onnx.ModelProto, recipe: PtqStatic | Cast | None = None) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(graph.SerializeToString())
    made = prepare(copy, recipe or PtqStatic())
    onnx.checker.check_model(made, full_check=True)
    return made


def assert_same(graph: onnx.ModelProto, made: onnx.ModelProto, *, tolerance: float, **inputs: npt.NDArray[Any]) -> None:
    for before, after in zip(answers(graph, **inputs), answers(made, **inputs), strict=True):
        np.testing.assert_allclose(
            after, before, rtol=0, atol=tolerance * max(1.0, float(np.abs(before).max(initial=0)))
        )


def kinds(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


def weights(graph: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def norm(channels: int, *, seed: int = 5) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        "gamma": rng.normal(1, 0.3, channels).astype(np.float32),
        "beta": rng.normal(0, 0.3, channels).astype(np.float32),
        "mean": rng.normal(0, 0.3, channels).astype(np.float32),
        "var": rng.uniform(0.5, 2, channels).astype(np.float32),
    }


def normalized(
    layer: onnx.NodeProto, *, shape: graphs.Shape, out: graphs.Shape, arrays: dict[str, Any], opset: int = 20
) -> onnx.ModelProto:
    """Build `layer`, which reads `x` and writes 6 channels `c`, and a batch normalization behind it."""
    nodes = [layer, make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], name="bn")]
    return small(nodes, inputs={"x": shape}, outputs={"y": out}, weights={**arrays, **norm(6)}, opset=opset)


LAYERS: dict[str, tuple[onnx.NodeProto, graphs.Shape, graphs.Shape, dict[str, Any]]] = {
    "conv": (
        make_node("Conv", ["x", "w", "b"], ["c"], name="l"),
        ("n", 4, 8, 8),
        ("n", 6, 6, 6),
        {"w": drawn(6, 4, 3, 3), "b": drawn(6, scale=0.3)},
    ),
    "conv without a bias": (
        make_node("Conv", ["x", "w"], ["c"], name="l", group=2),
        ("n", 4, 8),
        ("n", 6, 6),
        {"w": drawn(6, 2, 3)},
    ),
    "transposed conv in groups": (
        make_node("ConvTranspose", ["x", "w", "b"], ["c"], name="l", group=2, strides=[2, 2]),
        ("n", 4, 8, 8),
        ("n", 6, 17, 17),
        {"w": drawn(4, 3, 3, 3), "b": drawn(6, scale=0.3)},
    ),
    "gemm": (
        make_node("Gemm", ["x", "w", "b"], ["c"], name="l", alpha=0.5),
        ("n", 4),
        ("n", 6),
        {"w": drawn(4, 6), "b": drawn(6, scale=0.3)},
    ),
    "gemm, transposed": (
        make_node("Gemm", ["x", "w"], ["c"], name="l", transB=1),
        ("n", 4),
        ("n", 6),
        {"w": drawn(6, 4)},
    ),
}


def folding_case(name: str = "conv", *, opset: int = 20) -> onnx.ModelProto:
    layer, shape, out, arrays = LAYERS[name]
    return normalized(layer, shape=shape, out=out, arrays=arrays, opset=opset)


@pytest.mark.parametrize("opset", [13, 17, 22])
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_normalization_is_folded_into_the_layer_before(name: str, opset: int) -> None:
    graph = folding_case(name, opset=opset)
    made = prepared(graph)
    assert kinds(made) == [LAYERS[name][0].op_type]
    rows = drawn(3, *(size for size in LAYERS[name][1] if isinstance(size, int)), scale=1)
    assert_same(graph, made, tolerance=ROUNDING, x=rows)


def test_folding_computes_equation_14() -> None:
    graph = folding_case()
    before, after = weights(graph), weights(prepared(graph))
    factor = before["gamma"].astype(np.float64) / np.sqrt(before["var"].astype(np.float64) + np.float32(1e-5))
    # what is stored is rounded to float32 once: half of the last of 24 bits
    np.testing.assert_allclose(after["w"], before["w"] * factor[:, None, None, None], rtol=2**-24)
    bias = (before["b"].astype(np.float64) - before["mean"]) * factor + before["beta"]
    np.testing.assert_allclose(after["b"], bias, rtol=2**-24)


def test_batch_normalizations_stay_where_the_recipe_says_so() -> None:
    assert "BatchNormalization" in kinds(prepared(folding_case(), PtqStatic(fold_batch_norm=False)))
    assert "BatchNormalization" in kinds(prepared(folding_case(), PtqStatic(float_layers=("bn",))))
    assert "BatchNormalization" in kinds(prepared(folding_case(), Cast()))


def test_a_value_that_somebody_else_reads_is_not_folded_away() -> None:
    graph = folding_case()
    graph.graph.node.append(make_node("Relu", ["c"], ["z"], name="other"))
    graph.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("n", 6, 6, 6)))
    made = prepared(graph)
    assert kinds(made) == ["Conv", "BatchNormalization", "Relu"]
    assert_same(graph, made, tolerance=0, x=drawn(2, 4, 8, 8, scale=1))


def test_a_value_that_is_an_output_of_the_graph_is_not_folded_away() -> None:
    graph = folding_case()
    graph.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ("n", 6, 6, 6)))
    assert "BatchNormalization" in kinds(prepared(graph))


def test_a_weight_that_two_layers_share_is_copied() -> None:
    graph = folding_case()
    graph.graph.node.append(make_node("Conv", ["x", "w", "b"], ["z"], name="twin"))
    graph.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("n", 6, 6, 6)))
    made = prepared(graph)
    assert kinds(made) == ["Conv", "Conv"]
    np.testing.assert_array_equal(weights(made)["w"], weights(graph)["w"])
    assert_same(graph, made, tolerance=ROUNDING, x=drawn(2, 4, 8, 8, scale=1))


def test_a_weight_that_may_be_set_from_outside_is_not_folded() -> None:
    graph = folding_case()
    graph.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (6, 4, 3, 3)))
    assert "BatchNormalization" in kinds(prepared(graph))


def pair(
    first: onnx.NodeProto, between: Sequence[onnx.NodeProto], second: onnx.NodeProto, arrays: dict[str, Any]
) -> onnx.ModelProto:
    """Build two layers, the first writing `c`, the second reading `d`, with something between."""
    flat = first.op_type == "Gemm"
    x: graphs.Shape = ("n", 4) if flat else ("n", 4, 8, 8)
    y: graphs.Shape = ("n", None) if flat else ("n", None, None, None)
    return small([first, *between, second], inputs={"x": x}, outputs={"y": y}, weights=arrays)


def conv_pair(*between: onnx.NodeProto, group: int = 1, uneven: bool = True, **more: Any) -> onnx.ModelProto:
    scale = np.logspace(-2, 2, 6, dtype=np.float32) if uneven else np.ones(6, np.float32)
    arrays = {
        "w1": drawn(6, 4, 3, 3) * scale[:, None, None, None],
        "b1": drawn(6, scale=0.3) * scale,
        "w2": drawn(6, 6 // group, 3, 3, seed=1),
        "b2": drawn(6, scale=0.3, seed=2),
        **more,
    }
    first = make_node("Conv", ["x", "w1", "b1"], ["c"], name="first")
    second = make_node("Conv", ["d" if between else "c", "w2", "b2"], ["y"], name="second", group=group)
    return pair(first, between, second, arrays)


def gemm_pair(*, transposed: int) -> onnx.ModelProto:
    scale = np.logspace(-2, 2, 6, dtype=np.float32)
    w1, w2 = drawn(4, 6) * scale, drawn(6, 5, seed=1)
    arrays = {"w1": w1.T if transposed else w1, "b1": drawn(6, scale=0.3), "w2": w2.T if transposed else w2}
    first = make_node("Gemm", ["x", "w1", "b1"], ["c"], name="first", transB=transposed)
    second = make_node("Gemm", ["d", "w2"], ["y"], name="second", transB=transposed)
    return pair(first, [make_node("Relu", ["c"], ["d"])], second, arrays)


EQUALIZABLE: dict[str, Callable[[], onnx.ModelProto]] = {
    "nothing between": conv_pair,
    "relu": lambda: conv_pair(make_node("Relu", ["c"], ["d"])),
    "leaky relu": lambda: conv_pair(make_node("LeakyRelu", ["c"], ["d"], alpha=0.1)),
    "prelu": lambda: conv_pair(make_node("PRelu", ["c", "slope"], ["d"]), slope=drawn(6, 1, 1, scale=0.3)),
    "max pool": lambda: conv_pair(make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2])),
    "depthwise": lambda: conv_pair(make_node("Relu", ["c"], ["d"]), group=6),
    "grouped": lambda: conv_pair(make_node("Relu", ["c"], ["d"]), group=2),
    "gemm": lambda: gemm_pair(transposed=0),
    "gemm, transposed": lambda: gemm_pair(transposed=1),
}


def outputs_of(graph: onnx.ModelProto) -> npt.NDArray[np.float32]:
    """Return the largest magnitude of each output channel of the first layer."""
    return _largest(graph, node=0, name="w1", axis=0)


def inputs_of(graph: onnx.ModelProto) -> npt.NDArray[np.float32]:
    """Return the largest magnitude of each input channel of the second layer."""
    return _largest(graph, node=-1, name="w2", axis=1)


def _largest(graph: onnx.ModelProto, *, node: int, name: str, axis: int) -> npt.NDArray[np.float32]:
    layer, weight = graph.graph.node[node], weights(graph)[name]
    given = {attribute.name: attribute.i for attribute in layer.attribute}
    if layer.op_type == "Gemm" and not given.get("transB"):
        weight = weight.T
    group = given.get("group", 1) if axis else 1
    parts = [np.abs(np.moveaxis(part, axis, 0)) for part in np.split(weight, group)]
    return np.concatenate([part.reshape(len(part), -1).max(axis=1) for part in parts])


@pytest.mark.parametrize("make", EQUALIZABLE.values(), ids=EQUALIZABLE.keys())
def test_equalized_layers_have_the_same_range_in_every_channel(make: Callable[[], onnx.ModelProto]) -> None:
    graph = make()
    made = prepared(graph, EQUALIZED)
    # until no scale is further than 1e-4 from 1
    np.testing.assert_allclose(outputs_of(made), inputs_of(made), rtol=1e-3)
    assert np.ptp(np.log(outputs_of(made))) < np.ptp(np.log(outputs_of(graph)))


@pytest.mark.parametrize("make", EQUALIZABLE.values(), ids=EQUALIZABLE.keys())
def test_equalizing_changes_no_answer(make: Callable[[], onnx.ModelProto]) -> None:
    graph = make()
    rows = drawn(3, *(dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim[1:]), scale=1)
    assert_same(graph, prepared(graph, EQUALIZED), tolerance=ROUNDING, x=rows)


def test_one_pair_is_scaled_as_equation_11_says() -> None:
    graph = conv_pair(make_node("Relu", ["c"], ["d"]))
    before, after = weights(graph), weights(prepared(graph, EQUALIZED))
    for channel in range(6):
        r1 = np.abs(before["w1"][channel]).max().astype(np.float64)
        r2 = np.abs(before["w2"][:, channel]).max().astype(np.float64)
        scale = 1 / r2 * np.sqrt(r1 * r2)
        np.testing.assert_allclose(after["w1"][channel], before["w1"][channel] / scale, rtol=2**-23)
        np.testing.assert_allclose(after["b1"][channel], before["b1"][channel] / scale, rtol=2**-23)
        np.testing.assert_allclose(after["w2"][:, channel], before["w2"][:, channel] * scale, rtol=2**-23)


def test_a_chain_of_layers_converges() -> None:
    graph = conv_pair(make_node("Relu", ["c"], ["d"]))
    graph.graph.node[-1].output[0] = "e"
    graph.graph.node.append(make_node("Conv", ["e", "w3"], ["y"], name="third"))
    graph.graph.initializer.append(numpy_helper.from_array(drawn(5, 6, 1, 1, seed=3), "w3"))
    made = prepared(graph, EQUALIZED)
    middle = np.abs(weights(made)["w2"])
    np.testing.assert_allclose(middle.max(axis=(0, 2, 3)), np.abs(weights(made)["w1"]).max(axis=(1, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(middle.max(axis=(1, 2, 3)), np.abs(weights(made)["w3"]).max(axis=(0, 2, 3)), rtol=1e-3)
    assert_same(graph, made, tolerance=ROUNDING, x=drawn(2, 4, 8, 8, scale=1))


@pytest.mark.parametrize("kind", ["Sigmoid", "Clip", "HardSwish"])
def test_what_is_not_positively_homogeneous_keeps_layers_apart(kind: str) -> None:
    bounds: dict[str, Any] = {"low": np.float32(0), "high": np.float32(6)} if kind == "Clip" else {}
    graph = conv_pair(make_node(kind, ["c", *bounds], ["d"]), **bounds)
    np.testing.assert_array_equal(weights(prepared(graph, EQUALIZED))["w1"], weights(graph)["w1"])


def test_a_layer_whose_answer_goes_two_ways_is_not_equalized() -> None:
    graph = conv_pair(make_node("Relu", ["c"], ["d"]))
    graph.graph.node.append(make_node("Neg", ["d"], ["z"], name="other"))
    graph.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("n", 6, 6, 6)))
    np.testing.assert_array_equal(weights(prepared(graph, EQUALIZED))["w1"], weights(graph)["w1"])


def test_a_weight_shared_by_both_layers_is_not_equalized() -> None:
    graph = conv_pair()
    graph.graph.node[0].CopyFrom(make_node("Conv", ["x", "w2"], ["c"], name="first"))
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 6
    np.testing.assert_array_equal(weights(prepared(graph, EQUALIZED))["w2"], weights(graph)["w2"])


def test_a_dead_channel_stays_as_it_is() -> None:
    graph = conv_pair(uneven=False)
    dead = weights(graph)["w1"].copy()
    dead[2] = 0
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(dead, "w1"))
    made = weights(prepared(graph, EQUALIZED))
    np.testing.assert_array_equal(made["b1"][2], weights(graph)["b1"][2])
    assert np.isfinite(made["w2"]).all()


def sliced() -> onnx.ModelProto:
    """Build a matrix product with a weight that is put together from slices, as torch writes it for an LSTM."""
    nodes = [
        make_node("Constant", [], ["zero"], value_ints=[0]),
        make_node("Constant", [], ["four"], value=numpy_helper.from_array(np.array([4], np.int64))),
        make_node("Constant", [], ["eight"], value_ints=[8]),
        make_node("Slice", ["w", "zero", "four", "zero"], ["top"], name="top"),
        make_node("Slice", ["w", "four", "eight", "zero"], ["bottom"], name="bottom"),
        make_node("Concat", ["bottom", "top"], ["turned"], name="concat", axis=0),
        make_node("MatMul", ["x", "turned"], ["y"], name="product"),
    ]
    return small(nodes, inputs={"x": ("n", 8)}, outputs={"y": ("n", 5)}, weights={"w": drawn(8, 5)})


def test_a_weight_made_of_slices_is_computed_exactly() -> None:
    graph = sliced()
    made = prepared(graph)
    assert kinds(made) == ["MatMul"]
    w = weights(graph)["w"]
    np.testing.assert_array_equal(weights(made)["turned"], np.concatenate([w[4:], w[:4]]))
    assert made.graph.node[0].name == "product"


def test_nodes_named_by_the_recipe_stay() -> None:
    assert "Concat" in kinds(prepared(sliced(), PtqStatic(float_layers=("concat",))))


def test_a_weight_that_may_be_set_from_outside_is_not_computed() -> None:
    graph = sliced()
    graph.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (8, 5)))
    made = prepared(graph)
    assert kinds(made) == ["Slice", "Slice", "Concat", "MatMul"]


def test_a_constant_that_would_grow_is_not_computed() -> None:
    nodes = [make_node("Expand", ["w", "shape"], ["big"]), make_node("Add", ["x", "big"], ["y"])]
    shape = np.array([1000, 1000], np.int64)
    graph = small(
        nodes, inputs={"x": (1000, 1000)}, outputs={"y": (1000, 1000)}, weights={"w": drawn(1, 1000), "shape": shape}
    )
    assert kinds(prepared(graph)) == ["Expand", "Add"]


def test_random_numbers_are_not_computed_in_advance() -> None:
    nodes = [make_node("RandomUniformLike", ["w"], ["noise"]), make_node("Add", ["x", "noise"], ["y"])]
    graph = small(nodes, inputs={"x": ("n", 4)}, outputs={"y": ("n", 4)}, weights={"w": drawn(4)})
    assert kinds(prepared(graph)) == ["RandomUniformLike", "Add"]


def test_half_precision_weights_become_single_precision() -> None:
    nodes = [make_node("Cast", ["h"], ["w"], to=TensorProto.FLOAT), make_node("MatMul", ["x", "w"], ["y"])]
    half = drawn(8, 5).astype(np.float16)
    graph = small(nodes, inputs={"x": ("n", 8)}, outputs={"y": ("n", 5)}, weights={"h": half})
    made = prepared(graph)
    assert kinds(made) == ["MatMul"]
    np.testing.assert_array_equal(weights(made)["w"], half.astype(np.float32))


def test_weights_in_8_bits_are_not_blown_up() -> None:
    nodes = [make_node("DequantizeLinear", ["q", "s"], ["w"]), make_node("MatMul", ["x", "w"], ["y"])]
    arrays = {"q": np.ones((8, 5), np.int8), "s": np.float32(0.1)}
    graph = small(nodes, inputs={"x": ("n", 8)}, outputs={"y": ("n", 5)}, weights=arrays)
    assert kinds(prepared(graph)) == ["DequantizeLinear", "MatMul"]


def branching(condition: Sequence[onnx.NodeProto], **arrays: Any) -> onnx.ModelProto:
    """Build an `If` on `truth`: `relu(x * w)` with a weight of its own, or `x`."""
    y = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    then_nodes = [make_node("Mul", ["x", "w"], ["c"], name="mul"), make_node("Relu", ["c"], ["r"], name="relu")]
    then = helper.make_graph(then_nodes, "then", [], [y], [numpy_helper.from_array(drawn(4), "w")])
    other = helper.make_graph([make_node("Identity", ["x"], ["r"])], "else", [], [y])
    nodes = [
        *condition,
        make_node("If", ["truth"], ["c"], name="if", then_branch=then, else_branch=other),
        make_node("Neg", ["c"], ["y"], name="neg"),
    ]
    return small(nodes, inputs={"x": ("n", 4)}, outputs={"y": ("n", 4)}, weights=arrays)


@pytest.mark.parametrize("truth", [True, False])
def test_a_branch_that_always_runs_takes_the_place_of_its_if(truth: bool) -> None:  # noqa: FBT001
    graph = branching([], truth=np.array(truth))
    made = prepared(graph)
    assert kinds(made) == (["Mul", "Relu", "Neg"] if truth else ["Neg"])
    assert_same(graph, made, tolerance=0, x=drawn(3, 4, scale=1))


def test_a_condition_on_a_declared_axis_is_constant() -> None:
    condition = [
        make_node("Shape", ["x"], ["axis"], start=1, end=2),
        make_node("Equal", ["axis", "four"], ["same"]),
        make_node("Squeeze", ["same"], ["truth"]),
    ]
    graph = branching(condition, four=np.array([4], np.int64))
    made = prepared(graph)
    assert kinds(made) == ["Mul", "Relu", "Neg"]
    assert_same(graph, made, tolerance=0, x=drawn(3, 4, scale=1))


def test_a_condition_on_the_batch_is_not_constant() -> None:
    condition = [
        make_node("Shape", ["x"], ["axis"], start=0, end=1),
        make_node("Equal", ["axis", "four"], ["same"]),
        make_node("Squeeze", ["same"], ["truth"]),
    ]
    graph = branching(condition, four=np.array([4], np.int64))
    made = prepared(graph)
    assert "If" in kinds(made)
    assert_same(graph, made, tolerance=0, x=drawn(4, 4, scale=1))


def test_nodes_that_do_nothing_go() -> None:
    nodes = [
        make_node("Dropout", ["x", "ratio"], ["a"], name="dropout"),
        make_node("Identity", ["a"], ["b"], name="same"),
        make_node("Relu", ["b"], ["c"], name="relu"),
        make_node("Identity", ["c"], ["y"], name="last"),
    ]
    graph = small(nodes, inputs={"x": ("n", 4)}, outputs={"y": ("n", 4)}, weights={"ratio": np.float32(0.5)})
    made = prepared(graph)
    assert kinds(made) == ["Relu", "Identity"]
    assert_same(graph, made, tolerance=0, x=drawn(3, 4, scale=1))


def test_a_dropout_whose_mask_is_read_stays() -> None:
    nodes = [make_node("Dropout", ["x"], ["y", "mask"]), make_node("Not", ["mask"], ["z"])]
    graph = small(
        nodes, inputs={"x": ("n", 4)}, outputs={"y": ("n", 4), "z": ("n", 4)}, weights={}, types={"z": TensorProto.BOOL}
    )
    assert kinds(prepared(graph)) == ["Dropout", "Not"]


@pytest.mark.parametrize("field", ["float_layers", "int8_layers"])
def test_a_name_that_no_node_has_is_refused_with_names_like_it(field: str) -> None:
    recipe = (
        PtqStatic(float_layers=("prodct",))
        if field == "float_layers"
        else PtqStatic(weight_bits=4, int8_layers=("prodct",))
    )
    with pytest.raises(ToolchainFailed, match=f"{field} names 'prodct', but .* product"):
        prepared(sliced(), recipe)


def test_a_weight_read_along_both_axes_is_copied() -> None:
    nodes = [
        make_node("Gather", ["w", "ids"], ["e"]),
        make_node("MatMul", ["e", "w"], ["y"], name="product"),
        make_node("Gemm", ["e", "w"], ["z"], name="tied", transB=1),
    ]
    graph = small(
        nodes,
        inputs={"ids": ("n",)},
        outputs={"y": ("n", 8), "z": ("n", 8)},
        weights={"w": drawn(8, 8)},
        types={"ids": TensorProto.INT64},
    )
    made = prepared(graph, PtqStatic())
    assert [list(node.input) for node in made.graph.node] == [["w", "ids"], ["e", "w_axis1"], ["e", "w"]]
    assert_same(graph, made, tolerance=0, ids=np.array([3, 5]))


def test_a_weight_that_an_inner_graph_reads_too_is_copied() -> None:
    graph = loop().graph
    made = prepared(graph)
    assert [node.input[1] for node in made.graph.node if node.op_type == "MatMul"] == ["w_outside"]
    assert_same(graph, made, tolerance=0, x=drawn(3, 16, scale=1))
