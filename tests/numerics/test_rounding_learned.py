"""Learned rounding agrees with what its papers say, and its operators with ONNX Runtime."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.numerics.more_operators import MORE
from workers.toolchains.octet.rounding import gptq as gptq_module
from workers.toolchains.octet.rounding.adaround import Task, adaround, channel_errors
from workers.toolchains.octet.rounding.forms import Form, Product, Transposed, Window, form_of
from workers.toolchains.octet.rounding.gptq import DAMPING, gptq, hessian, in_parts, inverse_factor, joined
from workers.toolchains.octet.rounding.layers import Grid
from workers.toolchains.octet.rounding.narrow import best_scale, bounds_of
from workers.toolchains.octet.rounding.operators import OPERATORS, NotTaken, run
from workers.toolchains.octet.rounding.samples import sample
from workers.toolchains.octet.rounding.soft import Effort, SoftWeight, beta_at, rectified

Floats = NDArray[np.float32]
Case = tuple[str, str, dict[str, Any], list[NDArray[Any]]]


def values(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def whole(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def _case(op_type: str, arrays: list[NDArray[Any]]) -> Case:
    return "", op_type, {}, arrays


X = values(2, 4, 6, 5)
SCALE, ZERO = np.array(0.05, np.float32), np.array(120, np.uint8)
CHANNELS = [values(4, seed=seed) for seed in (1, 2, 3)]
CASES: list[Case] = [
    ("strided", "Conv", {"strides": [2, 1], "pads": [1, 0, 2, 1]}, [X, values(6, 4, 3, 2), values(6)]),
    ("grouped", "Conv", {"group": 2, "dilations": [2, 1]}, [X, values(6, 2, 2, 3)]),
    ("same upper", "Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [X, values(3, 4, 3, 2)]),
    ("same lower", "Conv", {"auto_pad": "SAME_LOWER"}, [X, values(3, 4, 2, 4)]),
    ("one axis", "Conv", {"pads": [2, 0]}, [X[:, :, :, 0], values(3, 4, 3)]),
    ("plain", "ConvTranspose", {"strides": [2, 3], "pads": [1, 0, 0, 2]}, [X, values(4, 3, 3, 3), values(3)]),
    ("grouped", "ConvTranspose", {"group": 2, "output_padding": [1, 0], "strides": [2, 2]}, [X, values(4, 3, 2, 2)]),
    ("padded", "MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, [X]),
    ("padded", "AveragePool", {"kernel_shape": [3, 2], "pads": [1, 1, 1, 0]}, [X]),
    ("counted", "AveragePool", {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0], "count_include_pad": 1}, [X]),
    ("", "GlobalAveragePool", {}, [X]),
    ("", "GlobalMaxPool", {}, [X]),
    (
        "doubled",
        "Resize",
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        [X, np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)],
    ),
    (
        "to a size",
        "Resize",
        {"mode": "nearest"},
        [X, np.array([], np.float32), np.array([], np.float32), whole(2, 4, 9, 3)],
    ),
    ("linear", "Resize", {"mode": "linear"}, [X, np.array([], np.float32), np.array([1, 1, 2, 3], np.float32)]),
    (
        "corners",
        "Resize",
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        [X, np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)],
    ),
    ("rows first", "DepthToSpace", {"blocksize": 2}, [X]),
    ("columns first", "DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [X]),
    (
        "transposed",
        "Gemm",
        {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
        [values(4, 3), values(5, 4), values(5)],
    ),
    ("", "MatMul", {}, [values(2, 3, 4), values(4, 5)]),
    *[_case(name, [X, values(4, 1, 1) + np.float32(3)]) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")],
    ("", "Pow", {}, [np.abs(X), np.array(2.0, np.float32)]),
    ("whole numbers", "Div", {}, [whole(-7, 7), whole(2, 2)]),
    ("", "Equal", {}, [whole(1, 2), whole(1, 3)]),
    *[_case(name, [np.abs(X) + np.float32(0.1)]) for name in ("Sqrt", "Log", "Reciprocal")],
    *[_case(name, [X]) for name in ("Exp", "Abs", "Neg", "Erf", "Relu", "Sigmoid", "Tanh", "Softplus", "Identity")],
    ("", "Dropout", {}, [X]),
    ("both", "Clip", {}, [X, np.array(-0.5, np.float32), np.array(0.5, np.float32)]),
    ("", "LeakyRelu", {"alpha": 0.2}, [X]),
    ("", "PRelu", {}, [X, values(4, 1, 1)]),
    ("", "Elu", {"alpha": 0.7}, [X]),
    ("", "HardSigmoid", {"alpha": 0.3, "beta": 0.4}, [X]),
    ("", "HardSwish", {}, [X * 3]),
    ("exact", "Gelu", {}, [X]),
    ("tanh", "Gelu", {"approximate": "tanh"}, [X]),
    ("", "Softmax", {"axis": 1}, [X]),
    ("", "LayerNormalization", {"axis": -1}, [X, values(5), values(5, seed=1)]),
    ("", "BatchNormalization", {}, [X, *CHANNELS, np.abs(values(4, seed=4)) + 0.5]),
    ("", "InstanceNormalization", {}, [X, *CHANNELS[:2]]),
    *[_case(name, [X, whole(-1, 1)]) for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")],
    ("all", "ReduceMean", {"keepdims": 0}, [X]),
    ("per tensor", "QuantizeLinear", {}, [X, SCALE, ZERO]),
    ("per channel", "QuantizeLinear", {"axis": 1}, [X, np.abs(CHANNELS[0]) + 0.01, np.zeros(4, np.int8)]),
    ("per channel", "DequantizeLinear", {"axis": 0}, [np.arange(8, dtype=np.int8).reshape(4, 2), CHANNELS[0]]),
    ("zero point", "DequantizeLinear", {}, [np.arange(250, 256).astype(np.uint8), SCALE, ZERO]),
    ("kept", "Reshape", {}, [X, whole(0, -1)]),
    ("", "Flatten", {"axis": 2}, [X]),
    ("", "Transpose", {"perm": [0, 2, 3, 1]}, [X]),
    ("reversed", "Transpose", {}, [X]),
    ("", "Squeeze", {}, [X[:, :1], whole(1)]),
    ("", "Unsqueeze", {}, [X, whole(-1, 0)]),
    ("from the end", "Gather", {"axis": 1}, [X, np.array([[0, -1], [2, 1]], np.int64)]),
    ("", "Concat", {"axis": 1}, [X, X]),
    ("sizes", "Split", {"axis": 1}, [X, whole(1, 3)]),
    ("stepped", "Slice", {}, [X, whole(0, 1), whole(-1, 100), whole(1, 2), whole(1, 2)]),
    ("backwards", "Slice", {}, [X, whole(-1), whole(-100), whole(3), whole(-2)]),
    ("", "Pad", {}, [X, whole(0, 1, 0, 2, 0, 0, 1, 0), np.array(0.5, np.float32)]),
    ("axes", "Pad", {}, [X, whole(1, 2), np.array(0.0, np.float32), whole(-1)]),
    ("", "Cast", {"to": TensorProto.INT64}, [X * 3]),
    ("", "Shape", {"start": 1}, [X]),
    ("", "Expand", {}, [values(4, 1), whole(2, 1, 3)]),
    ("", "Where", {}, [X > 0, X, -X]),
    *MORE,
]


def graph_of(op_type: str, attributes: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> onnx.ModelProto:
    names = [f"i{place}" if array.size else "" for place, array in enumerate(arrays)]
    outputs = ["y", "z"] if op_type in ("Split", "TopK") else ["y"]
    node = helper.make_node(op_type, names, outputs, **attributes)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, arrays, strict=True)
        if name
    ]
    graph = helper.make_graph([node], "one", inputs, [helper.make_empty_tensor_value_info(name) for name in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(("title", "op_type", "attributes", "arrays"), CASES, ids=[f"{c[1]} {c[0]}" for c in CASES])
def test_torch_computes_an_operator_as_onnx_runtime_does(
    title: str, op_type: str, attributes: dict[str, Any], arrays: list[NDArray[Any]]
) -> None:
    graph = graph_of(op_type, attributes, arrays)
    given = {f"i{place}": array for place, array in enumerate(arrays) if array.size}
    theirs = onnxruntime.InferenceSession(graph.SerializeToString()).run(["y"], given)[0]
    ours = run(graph.graph.node, {name: torch.tensor(array) for name, array in given.items()}, "y")
    assert tuple(ours.shape) == theirs.shape, title
    # both sum in float32, in another order: sums of at most 36 products of numbers around 1
    np.testing.assert_allclose(ours.numpy().astype(theirs.dtype), theirs, rtol=1e-4, atol=1e-5)


def test_every_operator_of_the_table_is_compared() -> None:
    assert {case[1] for case in CASES} == set(OPERATORS)


@pytest.mark.parametrize(
    ("op_type", "attributes", "arrays"),
    [
        ("Hardmax", {}, [X]),
        ("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 1, "pads": [1, 0, 1, 0]}, [X]),
        ("Pad", {"mode": "wrap"}, [X, whole(0, 0, 1, 1, 0, 0, 1, 1)]),
        ("Resize", {"mode": "cubic"}, [X, np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)]),
    ],
)
def test_what_the_table_does_not_know_is_refused_by_name(
    op_type: str, attributes: dict[str, Any], arrays: list[NDArray[Any]]
) -> None:
    graph = graph_of(op_type, attributes, arrays)
    given = {f"i{place}": torch.tensor(array) for place, array in enumerate(arrays) if array.size}
    with pytest.raises(NotTaken, match=op_type):
        run(graph.graph.node, given, "y")


def test_gradients_pass_a_quantizer_inside_its_range_and_not_outside() -> None:
    node = graph_of("QuantizeLinear", {}, [X, SCALE, ZERO]).graph.node
    x = torch.tensor([0.123, 100.0], requires_grad=True)
    run(node, {"i0": x, "i1": torch.tensor(SCALE), "i2": torch.tensor(ZERO)}, "y").sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [1 / 0.05, 0], rtol=1e-6)


LAYERS: list[tuple[str, dict[str, Any], NDArray[Any], NDArray[Any]]] = [
    ("Conv", {"strides": [2, 1], "pads": [1, 0, 2, 1]}, X, values(6, 4, 3, 2)),
    ("Conv", {"group": 2, "dilations": [2, 1], "auto_pad": "VALID"}, X, values(6, 2, 2, 3)),
    ("Conv", {"group": 4, "auto_pad": "SAME_LOWER", "strides": [2, 2]}, X, values(4, 1, 2, 4)),
    ("Conv", {"pads": [2, 0]}, X[:, :, :, 0], values(3, 4, 3)),
    ("Conv", {"auto_pad": "SAME_UPPER"}, values(1, 2, 4, 5, 3), values(3, 2, 2, 2, 2)),
    ("ConvTranspose", {"strides": [2, 3], "pads": [1, 0, 0, 2]}, X, values(4, 3, 3, 3)),
    ("ConvTranspose", {"group": 2, "output_padding": [1, 0], "strides": [2, 2]}, X, values(4, 3, 2, 2)),
    ("ConvTranspose", {"dilations": [2, 2], "pads": [3, 3, 0, 1]}, X, values(4, 3, 2, 3)),
    ("Gemm", {"transB": 1, "alpha": 0.5}, values(7, 4), values(5, 4)),
    ("Gemm", {}, values(7, 4), values(4, 5)),
    ("MatMul", {}, values(2, 3, 4), values(4, 5)),
]


@pytest.mark.parametrize(("op_type", "attributes", "x", "weight"), LAYERS)
def test_a_layer_is_a_product_of_its_patches(
    op_type: str, attributes: dict[str, Any], x: Floats, weight: Floats
) -> None:
    graph = graph_of(op_type, attributes, [x, weight])
    y = onnxruntime.InferenceSession(graph.SerializeToString()).run(["y"], {"i0": x, "i1": weight})[0]
    form = form_of(graph.graph.node[0], weight.shape)
    assert form is not None
    picked = np.arange(form.positions(y))[::2]
    product = np.einsum("pgk,gok->pgo", form.patches(x, y.shape, picked), form.matrix(weight))
    # float32 sums of at most 36 products in another order
    np.testing.assert_allclose(product.reshape(len(picked), -1), form.outputs(y, picked), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(form.weight(form.matrix(weight)), weight)


def test_learning_starts_at_the_float_weight() -> None:
    weight = values(6, 10) * 0.3
    grid = grid_for(weight, bits=8)
    # float32 carries 24 bits through the sigmoid and back: far below a thousandth of a step
    np.testing.assert_allclose(SoftWeight(weight, grid).value().numpy(), weight, atol=1e-3 * grid.scale.max())


def test_the_slope_is_that_of_loss_and_regularizer() -> None:
    weight = values(5, 7)
    grid, beta, pressure = grid_for(weight, bits=3), 4.0, 0.3
    soft = SoftWeight(weight, grid)
    logits = soft.logits.clone().double().requires_grad_()
    down = torch.floor(torch.tensor(weight / grid.scale)).double()
    value = torch.tensor(grid.scale).double() * (down + rectified(logits)).clamp(grid.qmin, grid.qmax)
    penalty = (1 - (2 * rectified(logits) - 1).abs().pow(beta)).sum()
    ((value**3).sum() + pressure * penalty).backward()  # type: ignore[no-untyped-call]
    ours = soft.slope(3 * soft.value() ** 2, beta=beta, pressure=pressure)
    assert logits.grad is not None
    np.testing.assert_allclose(ours.numpy(), logits.grad.numpy(), rtol=1e-3, atol=1e-4)  # float32 against float64


def test_the_rectified_sigmoid_reaches_both_ends() -> None:
    h = rectified(torch.tensor([-10.0, 0.0, 10.0]))
    np.testing.assert_array_equal(h.numpy(), [0, 0.5, 1])


def test_beta_falls_from_20_to_2_after_the_free_steps() -> None:
    assert beta_at(0.1) is None
    betas = [beta_at(share) or 0 for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert betas == sorted(betas, reverse=True)
    assert (betas[0], betas[-1]) == (20, 2)


def grid_for(weight: Floats, *, bits: int) -> Grid:
    """Return a symmetric grid with one scale per row, wide enough to clip nothing."""
    most = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(tuple(range(1, weight.ndim)), keepdims=True) / np.float32(most)
    return Grid(scale=scale, zero_point=np.zeros((), np.int32), qmin=-most - 1, qmax=most)


def task_for(form: Form, weight: Floats, x: Floats, *, bits: int) -> Task:
    """Return a layer with a Relu behind it; its inputs come in eight batches, of which one is held out."""
    sizes = len(x) // 8
    pairs = [(x[at : at + sizes], outputs(form, weight, x[at : at + sizes])) for at in range(0, len(x), sizes)]
    groups, rows, k = form.matrix(weight).shape
    samples = sample(form, iter(pairs), count=len(pairs), seed=0, shape=(groups, rows, k))
    bias = np.zeros((groups, rows), np.float32)
    return Task(
        form=form, weight=weight, grid=grid_for(weight, bits=bits), bias=bias, activation=torch.relu, samples=samples
    )


def outputs(form: Form, weight: Floats, x: Floats) -> Floats:
    if isinstance(form, Product):
        return np.asarray(x @ weight.T, np.float32)
    return np.asarray(torch.conv2d(torch.tensor(x), torch.tensor(weight), padding=1).numpy(), np.float32)


def correlated(*shape: int) -> Floats:
    """Return inputs that go along with each other, as real ones do: there one rounding makes up for another."""
    rng = np.random.default_rng(5)
    return (values(*shape, seed=3) + 2 * rng.normal(0, 1, (shape[0], 1, *shape[2:]))).clip(0).astype(np.float32)


TINY: list[tuple[Form, Floats, Floats]] = [
    (Product(transposed=True), values(6, 20), correlated(512, 20)),
    (
        Window(kernel=(3, 3), strides=(1, 1), dilations=(1, 1), before=(1, 1), upper=True, groups=1),
        values(5, 4, 3, 3),
        correlated(64, 4, 6, 6),
    ),
]


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(("form", "weight", "x"), TINY, ids=["linear", "conv"])
def test_adaround_errs_less_than_nearest_on_rows_held_out(form: Form, weight: Floats, x: Floats, bits: int) -> None:
    task = task_for(form, weight, x, bits=bits)
    learned = adaround(task, Effort(steps=400), seed=0)
    nearest = task.grid.nearest(weight)
    errors = [channel_errors(task, form.matrix(each)) for each in (learned, nearest)]
    assert (errors[0] <= errors[1]).all()
    assert errors[0].sum() < 0.8 * errors[1].sum()


@pytest.mark.parametrize(("form", "weight", "x"), TINY, ids=["linear", "conv"])
def test_adaround_moves_no_weight_further_than_to_its_two_neighbours(form: Form, weight: Floats, x: Floats) -> None:
    task = task_for(form, weight, x, bits=4)
    down = np.floor(weight / task.grid.scale)
    up = adaround(task, Effort(steps=100), seed=0) - down
    assert set(np.unique(up)) <= {0, 1}


def test_adaround_follows_from_its_seed() -> None:
    task = task_for(*TINY[0], bits=4)
    first, second = (adaround(task, Effort(steps=50), seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def products(x: Floats) -> Floats:
    """Return 2 X^T X, the mean over rows."""
    return np.asarray(2 * x.T @ x / len(x), np.float32)


def gptq_written_out(weight: Floats, grid: Grid, h: Floats) -> NDArray[np.int32]:
    """Round one column after the other and solve anew for the columns left (Frantar et al. 2022, equations 2 and 3)."""
    left = weight.astype(np.float64)
    damped = h.astype(np.float64) + DAMPING * np.diag(h).mean() * np.eye(len(h))
    rounded = np.zeros(weight.shape, np.int32)
    for at in range(weight.shape[1]):
        inverse = np.linalg.inv(damped[at:, at:])
        rounded[:, at] = grid.nearest(left.astype(np.float32))[:, at]
        off = left[:, at] - grid.value(rounded)[:, at]
        left[:, at:] -= np.outer(off / inverse[0, 0], inverse[0])
    return rounded


def test_gptq_gives_what_its_equations_give() -> None:
    weight, x = values(6, 20), correlated(512, 20)
    grid = grid_for(weight, bits=4)
    h = products(x)
    scale, zero = np.broadcast_to(grid.scale, weight.shape), np.zeros(weight.shape, np.int32)
    ours = gptq(weight, scale, zero, bounds=(grid.qmin, grid.qmax), factor=inverse_factor(h.copy()))
    theirs = gptq_written_out(weight, grid, h)
    better = error_of(grid, theirs, weight, h) <= error_of(grid, grid.nearest(weight), weight, h)
    # float32 against float64: a weight halfway between two integers may fall to either side, and none here is
    np.testing.assert_array_equal(ours[better], theirs[better])


def error_of(grid: Grid, integers: NDArray[np.int32], weight: Floats, h: Floats) -> Floats:
    off = grid.value(integers) - weight
    return np.asarray(((off @ h) * off).sum(1), np.float32)


@pytest.mark.parametrize(("form", "weight", "x"), TINY, ids=["linear", "conv"])
def test_gptq_errs_no_more_than_nearest(form: Form, weight: Floats, x: Floats) -> None:
    grid = grid_for(weight, bits=3)
    y = outputs(form, weight, x)
    h = hessian(form, iter([(x, y.shape)]), count=1, seed=0)[0]
    matrix = form.matrix(weight)[0]
    scale = np.broadcast_to(grid.scale.reshape(-1, 1), matrix.shape)
    learned = gptq(
        matrix, scale, np.zeros(matrix.shape, np.int32), bounds=(grid.qmin, grid.qmax), factor=inverse_factor(h.copy())
    )
    flat = Grid(scale=scale, zero_point=grid.zero_point, qmin=grid.qmin, qmax=grid.qmax)
    errors = [error_of(flat, each, matrix, h) for each in (learned, flat.nearest(matrix))]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()  # float32 rounding of the two sums
    assert errors[0].sum() < 0.8 * errors[1].sum()


def test_the_hessian_is_the_mean_of_all_positions_however_they_are_batched() -> None:
    form, _, x = TINY[0]
    whole_one = hessian(form, iter([(x, (512, 6))]), count=1, seed=0)
    parts = hessian(form, iter([(x[:100], (100, 6)), (x[100:], (412, 6))]), count=2, seed=0)
    np.testing.assert_allclose(parts, whole_one, rtol=1e-4)
    np.testing.assert_allclose(whole_one[0], products(x), rtol=1e-4)


def test_a_wide_layer_is_cut_into_parts_and_joined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq_module, "MOST_INPUTS", 8)
    matrix = values(2, 6, 20)
    assert in_parts(matrix).shape == (2 * 4, 6, 5)
    np.testing.assert_array_equal(joined(in_parts(matrix), groups=2), matrix)
    form, _, x = TINY[0]
    h = hessian(form, iter([(x, (512, 6))]), count=1, seed=0)
    np.testing.assert_allclose(h, [products(x[:, at : at + 5]) for at in range(0, 20, 5)], rtol=1e-4)


def test_gptq_rounds_with_groups_and_zero_points() -> None:
    weight, x = values(6, 20), correlated(512, 20)
    scale = np.repeat(np.abs(values(6, 2, seed=8)) * 0.1 + 0.2, 10, axis=1).astype(np.float32)
    zero = np.repeat(np.random.default_rng(2).integers(5, 10, (6, 2)), 10, axis=1).astype(np.int32)
    grid = Grid(scale=scale, zero_point=zero, qmin=0, qmax=15)
    h = products(x)
    learned = gptq(weight, scale, zero, bounds=(0, 15), factor=inverse_factor(h.copy()))
    assert error_of(grid, learned, weight, h).sum() < error_of(grid, grid.nearest(weight), weight, h).sum()
    assert 0 <= learned.min() <= learned.max() <= 15


@pytest.mark.parametrize("bits", [4, 2])
def test_a_narrow_scale_errs_no_more_than_the_full_range(bits: int) -> None:
    weight, (qmin, qmax) = values(8, 4, 3, 3), bounds_of(bits)
    present = np.full((8, 1, 1, 1), 0.1, np.float32)
    full = np.maximum(weight.max((1, 2, 3)) / qmax, weight.min((1, 2, 3)) / qmin).reshape(8, 1, 1, 1)

    def error(scale: Floats) -> Floats:
        off = np.clip(np.rint(weight / scale), qmin, qmax) * scale - weight
        return np.asarray((off**2).sum((1, 2, 3)), np.float32)

    assert (error(best_scale(weight, present, bits=bits)) <= error(full)).all()


@pytest.mark.parametrize(("bits", "share"), [(4, 0.0115), (2, 0.1188)])
def test_the_error_of_a_narrow_normal_weight_is_that_of_the_best_uniform_quantizer(bits: int, share: float) -> None:
    # Max 1960, table II: the least error of 16 and of 4 equal steps, on a grid that lies evenly about zero. Ours has
    # zero on it and one step more below than above, so it errs more, but less than with one step fewer
    weight = values(1, 2**16, seed=3)
    qmin, qmax = bounds_of(bits)
    scale = best_scale(weight, np.ones((1, 1), np.float32), bits=bits)
    error = float(np.square(np.clip(np.rint(weight / scale), qmin, qmax) * scale - weight).mean())
    fewer = {4: 0.0131, 2: 0.1902}[bits]
    assert share < error / float(weight.var()) < fewer


def test_a_transposed_convolution_without_plain_padding_has_no_form() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], auto_pad="SAME_UPPER")
    assert form_of(node, (4, 3, 2, 2)) is None
    assert isinstance(form_of(helper.make_node("ConvTranspose", ["x", "w"], ["y"]), (4, 3, 2, 2)), Transposed)
