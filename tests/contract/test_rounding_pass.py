"""Learned rounding changes the integers of weights and nothing else, on graphs of every kind, and says what it left."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.domain.datasets import DatasetFormat
from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqStatic, Single, WeightOnly
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution
from tests import graphs
from tests.graphs import drawn, small
from workers.stage_records.common import RowSource
from workers.stage_records.making import TransformSpec
from workers.toolchains import transform
from workers.toolchains.graph import load_graph
from workers.toolchains.made import Made
from workers.toolchains.octet.rounding import by_block, by_layer, learn, study
from workers.toolchains.octet.rounding.blocks import blocks_of
from workers.toolchains.octet.rounding.layers import layers_of
from workers.toolchains.octet.rounding.wiring import Wiring

Floats = NDArray[np.float32]
Method = Literal["gptq", "adaround", "brecq"]

ROWS = 48
FLOAT = "float32.onnx"
METHODS: list[Method] = ["gptq", "adaround", "brecq"]
RECIPES: dict[Method, Single] = {
    "gptq": WeightOnly(bits=4, rounding="gptq"),
    "adaround": WeightOnly(bits=4, rounding="adaround"),
    "brecq": WeightOnly(bits=4, rounding="brecq"),
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests short: their layers have a few hundred weights."""
    monkeypatch.setattr(by_layer, "MOST_STEPS", 300)
    monkeypatch.setattr(by_block, "MOST_STEPS", 300)


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), [output], name=f"{op_type.lower()}_{output}", **attributes)


def residual() -> onnx.ModelProto:
    """Return a convolution, a residual block of two and a Gemm."""
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "w1", "b1"], "c1", **same),
        node("Relu", ["c1"], "r1"),
        node("Conv", ["r1", "w2", "b1"], "c2", **same),
        node("Relu", ["c2"], "r2"),
        node("Conv", ["r2", "w3", "b1"], "c3", **same),
        node("Add", ["c3", "r1"], "s"),
        node("Relu", ["s"], "r3"),
        node("GlobalAveragePool", ["r3"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "w4"], "y", transB=1),
    ]
    weights = {"w1": drawn(8, 3, 3, 3), "b1": drawn(8, scale=0.1), "w2": drawn(8, 8, 3, 3, seed=1)}
    weights |= {"w3": drawn(8, 8, 3, 3, seed=2), "w4": drawn(4, 8, seed=3)}
    return small(nodes, inputs={"x": ["n", 3, 8, 8]}, outputs={"y": ["n", 4]}, weights=weights, opset=21)


def mixed() -> onnx.ModelProto:
    """Return a depthwise, a transposed and a one-axis convolution and a MatMul on three axes."""
    nodes = [
        node("Conv", ["x", "dw"], "a", group=3, pads=[1, 1, 1, 1]),
        node("HardSwish", ["a"], "b"),
        node("ConvTranspose", ["b", "up"], "c", strides=[2, 2]),
        node("Relu", ["c"], "d"),
        node("Reshape", ["d", "flat"], "e"),
        node("Conv", ["e", "line"], "g", pads=[1, 1]),
        node("LeakyRelu", ["g"], "h"),
        node("MatMul", ["h", "m"], "y"),
    ]
    weights = {"dw": drawn(3, 1, 3, 3), "up": drawn(3, 4, 2, 2), "flat": np.array([0, 16, -1], np.int64)}
    weights |= {"line": drawn(5, 16, 3), "m": drawn(64, 6)}
    return small(nodes, inputs={"x": ["n", 3, 8, 8]}, outputs={"y": ["n", 5, 6]}, weights=weights, opset=21)


def stored(
    graph: onnx.ModelProto, *, names: Sequence[str], kind: type = ml_dtypes.int4, axes: dict[str, int] | None = None
) -> onnx.ModelProto:
    """Return the graph with some weights as integers and DequantizeLinear, one scale per index along an axis."""
    made = onnx.ModelProto.FromString(graph.SerializeToString())
    most = 7 if kind is ml_dtypes.int4 else 127
    dequantizers = []
    for tensor in [each for each in made.graph.initializer if each.name in names]:
        weight, axis = numpy_helper.to_array(tensor), (axes or {}).get(tensor.name, 0)
        others = tuple(at for at in range(weight.ndim) if at != axis)
        scale = (np.abs(weight).max(others, keepdims=True) / np.float32(most)).astype(np.float32)
        integers = np.rint(weight / scale).astype(kind)
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(integers, f"{name}_q"))
        made.graph.initializer.append(numpy_helper.from_array(scale.reshape(-1), f"{name}_s"))
        dequantizers.append(
            helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s"], [name], f"dq_{name}", axis=axis)
        )
    nodes = [*dequantizers, *(onnx.NodeProto.FromString(each.SerializeToString()) for each in made.graph.node)]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    onnx.checker.check_model(made, full_check=True)
    return made


def rows(count: int = ROWS, *, seed: int = 1) -> Floats:
    """Return rows whose channels go along with each other, as those of pictures do."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 0.5, (count, 3, 8, 8)) + rng.normal(0.5, 1, (count, 1, 8, 8))).astype(np.float32)


def signature(graph: onnx.ModelProto) -> Signature:
    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        sizes = tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
        return TensorSpec(name=value.name, dtype=DType.FLOAT32, shape=sizes, batch_axis=0)

    return Signature(
        inputs=tuple(map(spec, graph.graph.input)),
        outputs=tuple(map(spec, graph.graph.output)),
    )


def spec_for(scratch: Path, graph: onnx.ModelProto, recipe: Single, *, count: int = ROWS) -> TransformSpec:
    onnx.save(graph, scratch / FLOAT)
    graphs.save_dataset(scratch / "cal.npz", rows())
    source = RowSource(path="cal.npz", format=DatasetFormat.NPZ, rows=tuple(range(count)), preprocessing=None)
    return TransformSpec(artifact=FLOAT, signature=signature(graph), recipe=recipe, calibration=source)


def learned(scratch: Path, graph: onnx.ModelProto, coarse: onnx.ModelProto, recipe: Single) -> Made:
    """Return what learning makes of a graph that is stored already; `coarse` stays as it is."""
    made = Made(graph=onnx.ModelProto.FromString(coarse.SerializeToString()), execution=Execution())
    onnx.save(graph, scratch / FLOAT)
    named = load_graph(scratch / FLOAT)
    assert [each.name for each in named.graph.node] == [each.name for each in graph.graph.node]
    return learn(made, spec_for(scratch, graph, recipe), scratch, lambda _share, _words: None)


def answers(graph: onnx.ModelProto, x: Floats) -> Floats:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    found: Floats = session.run(None, {"x": x})[0]
    return found


def error(graph: onnx.ModelProto, original: onnx.ModelProto) -> float:
    """Return the squared error of a graph's answers on rows that nothing learned from."""
    x = rows(256, seed=9)
    return float(np.square(answers(graph, x) - answers(original, x)).sum())


def integers(graph: onnx.ModelProto) -> dict[str, NDArray[np.int32]]:
    return {
        each.name: numpy_helper.to_array(each).astype(np.int32)
        for each in graph.graph.initializer
        if each.name.endswith("_q")
    }


RESIDUAL = ("w1", "w2", "w3", "w4")
MIXED = ("dw", "up", "line", "m")
MIXED_AXES = {"up": 1, "m": 1}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("make", "names"), [(residual, RESIDUAL), (mixed, MIXED)], ids=["residual", "mixed"])
def test_what_is_learned_answers_more_like_float_than_nearest(
    make: Callable[[], onnx.ModelProto], names: Sequence[str], method: Method, tmp_path: Path
) -> None:
    graph = make()
    coarse = stored(graph, names=names, axes=MIXED_AXES)
    made = learned(tmp_path, graph, coarse, RECIPES[method])
    assert error(made.graph, graph) < 0.8 * error(coarse, graph)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("method", METHODS)
def test_only_the_integers_of_weights_change_and_all_of_them_may(method: Method, tmp_path: Path) -> None:
    graph = residual()
    coarse = stored(graph, names=RESIDUAL)
    made = learned(tmp_path, graph, coarse, RECIPES[method]).graph
    before, after = integers(coarse), integers(made)
    assert all((before[name] != after[name]).any() for name in before)
    for each in made.graph.initializer:
        if each.name in after:
            assert each.data_type == TensorProto.INT4
            each.CopyFrom(next(other for other in coarse.graph.initializer if other.name == each.name))
    assert made == coarse


@pytest.mark.parametrize("method", ["adaround", "brecq"])
def test_every_integer_is_one_of_its_two_neighbours(method: Method, tmp_path: Path) -> None:
    graph = residual()
    coarse = stored(graph, names=RESIDUAL)
    made = learned(tmp_path, graph, coarse, RECIPES[method]).graph
    weights = {each.name: numpy_helper.to_array(each) for each in (*graph.graph.initializer, *made.graph.initializer)}
    for name, found in integers(made).items():
        scale = weights[f"{name[:-2]}_s"].reshape(-1, *[1] * (found.ndim - 1))
        # a weight at the end of the range lies on the grid, but for float32's rounding of w / s
        assert np.abs(found - weights[name[:-2]] / scale).max() < 1 + 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_learns_the_same(method: Method, tmp_path: Path) -> None:
    graph = residual()
    coarse = stored(graph, names=RESIDUAL)
    first, second = (learned(tmp_path, graph, coarse, RECIPES[method]) for _ in range(2))
    assert first == second


def test_a_recipe_that_asks_for_nothing_gets_the_graph_back(tmp_path: Path) -> None:
    made = Made(graph=residual(), execution=Execution())
    assert learn(made, spec_for(tmp_path, residual(), PtqStatic()), tmp_path, lambda _share, _words: None) is made


def test_a_residual_block_is_one_block() -> None:
    graph = residual()
    wiring = Wiring(stored(graph, names=RESIDUAL).graph)
    layers, left = layers_of(wiring)
    blocks = blocks_of(layers, wiring, Wiring(graph.graph))
    assert [[layer.output for layer in block.layers] for block in blocks] == [["c1"], ["c2", "c3"], ["y"]]
    assert [block.output for block in blocks] == ["r1", "r3", "y"]
    assert left == []


def test_a_block_that_torch_cannot_run_is_learned_layer_by_layer_and_named(tmp_path: Path) -> None:
    graph = residual()
    odd = next(each for each in graph.graph.node if each.output[0] == "r2")
    odd.op_type = "ThresholdedRelu"
    coarse = stored(graph, names=RESIDUAL)
    made = learned(tmp_path, graph, coarse, RECIPES["brecq"])
    assert made.notes == ("One block was learned layer by layer: torch does not run its operator ThresholdedRelu.",)
    assert (integers(made.graph)["w3_q"] != integers(coarse)["w3_q"]).any()


def test_layers_that_share_a_weight_are_left_at_nearest_and_named(tmp_path: Path) -> None:
    graph = residual()
    next(each for each in graph.graph.node if each.output[0] == "c3").input[1] = "w2"
    coarse = stored(graph, names=RESIDUAL)
    made = learned(tmp_path, graph, coarse, RECIPES["adaround"])
    why = "they share a weight, or take it in a way that cannot be followed"
    assert made.notes == (f"Layers conv_c2, conv_c3 are rounded to nearest: {why}.",)
    np.testing.assert_array_equal(integers(made.graph)["w2_q"], integers(coarse)["w2_q"])


def test_a_weight_behind_a_transpose_is_learned(tmp_path: Path) -> None:
    graph = residual()
    gemm = graph.graph.node[-1]
    gemm.CopyFrom(node("Gemm", ["f", "w5"], "y"))
    turned = node("Transpose", ["w4"], "w5", perm=[1, 0])
    nodes = [turned, *(onnx.NodeProto.FromString(each.SerializeToString()) for each in graph.graph.node)]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    coarse = stored(graph, names=RESIDUAL)
    made = learned(tmp_path, graph, coarse, RECIPES["gptq"])
    assert (integers(made.graph)["w4_q"] != integers(coarse)["w4_q"]).any()
    assert error(made.graph, graph) < error(coarse, graph)


def test_factors_that_a_toolchain_put_on_input_channels_are_followed(tmp_path: Path) -> None:
    graph, scaled = residual(), residual()
    factor = np.random.default_rng(4).uniform(0.5, 4, 8).astype(np.float32)
    tensors = {each.name: each for each in scaled.graph.initializer}
    moved = numpy_helper.to_array(tensors["w4"]) * factor
    tensors["w4"].CopyFrom(numpy_helper.from_array(moved, "w4"))
    scaled.graph.initializer.append(numpy_helper.from_array(1 / factor, "smooth"))
    scaled.graph.node[-1].input[0] = "f2"
    scaled.graph.node.insert(len(scaled.graph.node) - 1, node("Mul", ["f", "smooth"], "f2"))
    coarse = stored(scaled, names=RESIDUAL, kind=np.int8)
    made = learned(tmp_path, graph, coarse, WeightOnly(bits=8, rounding="gptq"))
    assert made.notes == ()
    assert error(made.graph, graph) <= error(coarse, graph)


def test_fewer_rows_are_taken_than_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "MOST_WRITTEN_BYTES", 1)
    graph = residual()
    made = learned(tmp_path, graph, stored(graph, names=RESIDUAL), RECIPES["gptq"])
    assert made.notes == ("The rounding was learned on 8 of 48 rows, for the disk they take.",)


def test_learning_needs_rows(tmp_path: Path) -> None:
    graph = residual()
    spec = replace(spec_for(tmp_path, graph, RECIPES["gptq"]), calibration=None)
    made = Made(graph=stored(graph, names=RESIDUAL), execution=Execution())
    with pytest.raises(ToolchainFailed, match="name a calibration dataset"):
        learn(made, spec, tmp_path, lambda _share, _words: None)


def test_a_graph_without_a_layer_to_learn_is_refused(tmp_path: Path) -> None:
    graph = residual()
    with pytest.raises(ToolchainFailed, match="set rounding to nearest"):
        learned(tmp_path, graph, graph, RECIPES["gptq"])


def made_by(scratch: Path, recipe: Single, *, graph: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """Return what the whole way makes: prepared, quantized by a toolchain, learned, checked."""
    told: list[float] = []
    spec = spec_for(scratch, graph or residual(), recipe)
    result = transform(spec, scratch, lambda share, _words: told.append(share))
    assert told == sorted(told)
    return onnx.load(scratch / result.artifact)


def weights_in(graph: onnx.ModelProto) -> list[NDArray[np.int32]]:
    return [
        numpy_helper.to_array(each).astype(np.int32)
        for each in graph.graph.initializer
        if each.data_type == TensorProto.INT8 and len(each.dims) > 1
    ]


@pytest.mark.parametrize("toolchain", ["nncf", "ort"])
def test_narrow_weights_are_stored_in_8_bits_but_for_the_layers_named(
    toolchain: Literal["nncf", "ort"], tmp_path: Path
) -> None:
    kept = ("conv_c1", "gemm_y")
    made = made_by(tmp_path, PtqStatic(toolchain=toolchain, weight_bits=4, int8_layers=kept))
    ranges = sorted((int(each.min()) >= -8 and int(each.max()) <= 7) for each in weights_in(made))
    assert ranges == [False, False, True, True]


@pytest.mark.parametrize("rounding", ["adaround", "brecq"])
@pytest.mark.parametrize("toolchain", ["nncf", "ort"])
def test_learned_narrow_weights_answer_more_like_float(
    toolchain: Literal["nncf", "ort"], rounding: Literal["adaround", "brecq"], tmp_path: Path
) -> None:
    nearest, learnt = (
        made_by(tmp_path, PtqStatic(toolchain=toolchain, weight_bits=4, rounding=each))
        for each in ("nearest", rounding)
    )
    assert error(learnt, residual()) < 0.8 * error(nearest, residual())
