"""What is NNCF's own: observers, attention, SmoothQuant, the rows each statistic sees, and dynamic quantization."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from nncf.common.tensor_statistics.collectors import HistogramAggregator
from nncf.common.tensor_statistics.statistics import MinMaxTensorStatistic
from nncf.tensor import Tensor
from onnx import TensorProto, helper, numpy_helper

from app.domain.datasets import DatasetFormat
from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqDynamic, PtqStatic, Single, WeightOnly
from app.domain.recipes.static import BiasCorrection
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution
from tests.graphs import drawn, small
from workers.openvino_engine import OpenVinoSession
from workers.stage_records.common import RowSource
from workers.stage_records.making import TransformResult, TransformSpec
from workers.toolchains import transform
from workers.toolchains.nncf import bias_correction, ptq_static
from workers.toolchains.nncf.calibration import CalibrationRows
from workers.toolchains.nncf.observers import RangeAggregator

Array = npt.NDArray[np.generic]
node = helper.make_node
ROWS = 40
WIDTH = 32
Arrays = dict[str, npt.NDArray[Any]]


def projected() -> onnx.ModelProto:
    """Build a residual block whose shortcut is a convolution: two layers take one tensor."""
    return small(
        [
            node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=[1, 1, 1, 1]),
            node("Relu", ["c0"], ["r0"], name="relu0"),
            node("Conv", ["r0", "w1", "b1"], ["c1"], name="shortcut"),
            node("Conv", ["r0", "w2", "b2"], ["c2"], name="block1", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], name="relu2"),
            node("Conv", ["r2", "w3", "b3"], ["c3"], name="block2", pads=[1, 1, 1, 1]),
            node("Add", ["c3", "c1"], ["sum"], name="add"),
            node("Relu", ["sum"], ["r3"], name="relu3"),
            node("GlobalAveragePool", ["r3"], ["p"], name="pool"),
            node("Flatten", ["p"], ["f"], name="flatten"),
            node("Gemm", ["f", "w4", "b4"], ["y"], name="fc", transB=1),
        ],
        inputs={"x": ("n", 3, 8, 8)},
        outputs={"y": ("n", 4)},
        weights={
            **{f"b{n}": drawn(c, scale=0.1, seed=n) for n, c in enumerate((8, 16, 16, 16, 4))},
            "w0": drawn(8, 3, 3, 3),
            "w1": drawn(16, 8, 1, 1),
            "w2": drawn(16, 8, 3, 3),
            "w3": drawn(16, 16, 3, 3),
            "w4": drawn(4, 16),
        },
    )


def attention(*, outliers: float = 1.0) -> onnx.ModelProto:
    """Build one head of attention and a projection; some channels may be `outliers` times as large."""
    gain = np.ones(WIDTH, np.float32)
    gain[[1, 9]] = outliers
    # such channels count no more than the others: their weights are as much smaller, as in trained transformers
    weights: dict[str, Array] = {
        f"w{name}": drawn(WIDTH, WIDTH, seed=seed) / gain[:, np.newaxis] for seed, name in enumerate("qkvo")
    }
    return small(
        [
            node("Mul", ["x", "gain"], ["h"], name="gain"),
            *(node("MatMul", ["h", f"w{name}"], [name], name=f"{name}_proj") for name in "qkv"),
            node("Transpose", ["k"], ["kt"], perm=[0, 2, 1], name="turn"),
            node("MatMul", ["q", "kt"], ["scores"], name="scores"),
            node("Mul", ["scores", "root"], ["scaled"], name="scale"),
            node("Softmax", ["scaled"], ["p"], axis=-1, name="softmax"),
            node("MatMul", ["p", "v"], ["mixed"], name="mix"),
            node("Add", ["mixed", "h"], ["added"], name="add"),
            node("MatMul", ["added", "wo"], ["y"], name="o_proj"),
        ],
        inputs={"x": ("n", 6, WIDTH)},
        outputs={"y": ("n", 6, WIDTH)},
        weights={**weights, "gain": gain, "root": np.array(WIDTH**-0.5, np.float32)},
    )


def plain() -> onnx.ModelProto:
    """Build two matrix products, of 32 and of 16 inputs."""
    return small(
        [
            node("MatMul", ["x", "w"], ["a"], name="long"),
            node("Relu", ["a"], ["b"], name="relu"),
            node("MatMul", ["b", "v"], ["y"], name="short"),
        ],
        inputs={"x": ("n", WIDTH)},
        outputs={"y": ("n", 48)},
        weights={"w": drawn(WIDTH, 16), "v": drawn(16, 48)},
    )


def rows(graph: onnx.ModelProto, count: int, *, seed: int = 1) -> Arrays:
    shape = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim[1:]]
    return {"x": (np.random.default_rng(seed).normal(0, 1, (count, *shape)) - 0.3).astype(np.float32)}


def signature(graph: onnx.ModelProto) -> Signature:
    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
        return TensorSpec(name=value.name, dtype=DType.FLOAT32, shape=(None, *shape), batch_axis=0)

    return Signature(inputs=tuple(map(spec, graph.graph.input)), outputs=tuple(map(spec, graph.graph.output)))


def make(graph: onnx.ModelProto, recipe: Single, scratch: Path, *, fed: Arrays | None = None) -> TransformResult:
    onnx.save(graph, scratch / "float32.onnx")
    given = rows(graph, ROWS) if fed is None else fed
    np.savez(scratch / "cal.npz", x=given["x"])
    chosen = tuple(range(len(given["x"])))
    source = RowSource(path="cal.npz", format=DatasetFormat.NPZ, rows=chosen, preprocessing=None)
    spec = TransformSpec(artifact="float32.onnx", signature=signature(graph), recipe=recipe, calibration=source)
    return transform(spec, scratch, lambda _share, _words: None)


def made(scratch: Path) -> onnx.ModelProto:
    return onnx.load(scratch / "out/variant.onnx")


def answers(path: Path, fed: Arrays) -> npt.NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found: npt.NDArray[np.float32] = onnxruntime.InferenceSession(str(path), options).run(None, fed)[0]
    return found


def noise(scratch: Path, graph: onnx.ModelProto) -> float:
    """Return the noise of a variant as a share of the energy of the answer, on rows it has not seen."""
    fed = rows(graph, 64, seed=7)
    exact = answers(scratch / "float32.onnx", fed)
    return float(((answers(scratch / "out/variant.onnx", fed) - exact) ** 2).sum() / (exact**2).sum())


def activations(graph: onnx.ModelProto) -> dict[str, tuple[float, npt.NDArray[Any]]]:
    """Return scale and zero point of every quantized activation, by the tensor's name."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    return {
        each.input[0]: (float(known[each.input[1]]), known[each.input[2]])
        for each in graph.graph.node
        if each.op_type == "QuantizeLinear"
    }


@pytest.mark.parametrize("kind", ["none", "fast", "full"])
def test_a_residual_block_with_a_projection_is_quantized(kind: Any, tmp_path: Path) -> None:
    make(projected(), PtqStatic(bias_correction=kind), tmp_path)
    # 8 bits through five layers leave noise of hundredths of the energy at most; a wrong graph, about all of it
    assert noise(tmp_path, projected()) < 0.05


def test_a_layer_behind_another_cut_is_no_obstacle(tmp_path: Path) -> None:
    graph = small(
        [
            node("Conv", ["x", "w"], ["a"], name="without_bias", pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["r"], name="relu"),
            node("Conv", ["r", "v", "b"], ["c"], name="with_bias", pads=[1, 1, 1, 1]),
            node("Concat", ["r", "c"], ["both"], name="both", axis=1),
            node("Conv", ["both", "u"], ["y"], name="head"),
        ],
        inputs={"x": ("n", 3, 8, 8)},
        outputs={"y": ("n", 4, 8, 8)},
        weights={"w": drawn(8, 3, 3, 3), "v": drawn(8, 8, 3, 3), "b": drawn(8), "u": drawn(4, 16, 1, 1)},
    )
    make(graph, PtqStatic(bias_correction="full"), tmp_path)
    assert noise(tmp_path, graph) < 0.05


def test_bias_correction_takes_the_shift_out_of_the_answer(tmp_path: Path) -> None:
    shifts = {}
    kinds: tuple[BiasCorrection, ...] = ("none", "full")
    for kind in kinds:
        make(projected(), PtqStatic(bias_correction=kind, weight_granularity="per_tensor"), tmp_path)
        fed = rows(projected(), ROWS)
        moved = answers(tmp_path / "out/variant.onnx", fed) - answers(tmp_path / "float32.onnx", fed)
        shifts[kind] = float(np.abs(moved.mean(axis=0)).max())
    assert shifts["full"] < shifts["none"]


def with_outliers(graph: onnx.ModelProto) -> Arrays:
    """Draw rows of a normal distribution, with one value far out on the negative side."""
    fed = rows(graph, 100)
    fed["x"][3, 0, 0] = -12
    return fed


def ends(values: npt.NDArray[np.float32], *, symmetric: bool, percentile: float | None) -> tuple[float, float]:
    """Return the range of values that come in five parts."""
    aggregator = RangeAggregator(HistogramAggregator(), symmetric=symmetric, percentile=percentile)
    for part in np.array_split(values, 5):
        aggregator.register_reduced_input(Tensor(part))
    found = aggregator.aggregate()
    return float(found[MinMaxTensorStatistic.MIN_STAT].data), float(found[MinMaxTensorStatistic.MAX_STAT].data)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_least_squared_error_leaves_out_a_lonely_outlier(*, symmetric: bool) -> None:
    values = np.random.default_rng(0).normal(0, 1, 1_000_000).astype(np.float32)
    values[300_000] = -12
    # with it, a million steps of 24/255 or 17/255 cost 738 or 370; without it, of 10/255, 128 and the 49 of the outlier
    assert max(map(abs, ends(values, symmetric=symmetric, percentile=None))) < 7


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("percentile", [90.0, 99.0, 100.0])
def test_a_percentile_is_one_of_all_values(*, symmetric: bool, percentile: float) -> None:
    values = np.random.default_rng(0).normal(0.5, 1, 100_000).astype(np.float32)
    low, high = ends(values, symmetric=symmetric, percentile=percentile)
    # an end may lie a bin further out, of 2,048: at the densest, 0.4 of the values per unit times 10/2048
    inside = np.abs(values) <= high if symmetric else (low <= values) & (values <= high)
    assert inside.mean() == pytest.approx(percentile / 100, abs=3 * 0.4 * 10 / 2048)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_a_percentile_leaves_out_a_lonely_outlier(kind: Any, tmp_path: Path) -> None:
    scales = []
    for recipe in (PtqStatic(activations=kind), PtqStatic(activations=kind, observer="percentile", percentile=99.9)):
        make(attention(), recipe, tmp_path, fed=with_outliers(attention()))
        scales.append(activations(made(tmp_path))["h"][0])
    # 99.9 % of normal values lie within 3.6 of their middle, the outlier at 12
    assert scales[1] < 0.6 * scales[0]


@pytest.mark.parametrize("observer", ["min_max", "percentile", "mse"])
def test_a_symmetric_range_holds_the_larger_side(observer: Any, tmp_path: Path) -> None:
    graph = plain()
    fed = {"x": np.random.default_rng(1).uniform(-5, 1, (ROWS, WIDTH)).astype(np.float32)}
    make(graph, PtqStatic(observer=observer), tmp_path, fed=fed)
    # values spread evenly: the best range leaves out next to nothing
    assert activations(made(tmp_path))["x"][0] * 128 > 0.95 * 5


def test_the_percentile_itself_counts(tmp_path: Path) -> None:
    scales = []
    for percentile in (90.0, 99.0, 100.0):
        make(attention(), PtqStatic(observer="percentile", percentile=percentile), tmp_path)
        scales.append(activations(made(tmp_path))["h"][0])
    # of normal values 90 % lie within 1.6 deviations, 99 % within 2.6, all of these within about 4
    assert scales[0] < 0.8 * scales[1] < 0.8 * 0.8 * scales[2]


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("wanted", "dtype"), [("uint8", np.uint8), ("int8", np.int8)])
def test_activations_take_the_type_asked_for(kind: Any, wanted: Any, dtype: type, tmp_path: Path) -> None:
    graph = projected()
    make(graph, PtqStatic(activations=kind, activation_dtype=wanted), tmp_path)
    zero_points = [zero_point for _, zero_point in activations(made(tmp_path)).values()]
    assert {zero_point.dtype for zero_point in zero_points} == {np.dtype(dtype)}
    if kind == "symmetric":
        assert {int(zero_point) for zero_point in zero_points} <= ({0} if wanted == "int8" else {0, 128})
    assert noise(tmp_path, graph) < 0.05


def test_a_shift_to_uint8_changes_no_answer(tmp_path: Path) -> None:
    found = []
    for recipe in (PtqStatic(), PtqStatic(activation_dtype="uint8")):
        make(attention(), recipe, tmp_path)
        found.append(answers(tmp_path / "out/variant.onnx", rows(attention(), 4)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_smooth_quant_moves_outliers_into_the_weights(tmp_path: Path) -> None:
    graph, noises = attention(outliers=30), {}
    for alpha in (None, 0.5):
        make(graph, PtqStatic(smooth_quant=alpha, bias_correction="none"), tmp_path)
        noises[alpha] = noise(tmp_path, graph)
    assert noises[0.5] < 0.7 * noises[None]


def test_alpha_itself_counts_and_none_leaves_smoothing_out(tmp_path: Path) -> None:
    files = set()
    for alpha in (None, 0.2, 0.8):
        make(attention(outliers=30), PtqStatic(smooth_quant=alpha), tmp_path)
        files.add((tmp_path / "out/variant.onnx").read_bytes())
        smoothed = sum(each.op_type == "Mul" for each in made(tmp_path).graph.node)
        assert (smoothed > 2) is (alpha is not None)
    assert len(files) == 3


def test_smooth_quant_without_a_place_is_said(tmp_path: Path) -> None:
    graph = projected()
    del graph.graph.node[-3:]
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("r3", TensorProto.FLOAT, ["n", 16, 8, 8]))
    notes = make(graph, PtqStatic(smooth_quant=0.5), tmp_path).notes
    assert any("smooth_quant had no place" in note for note in notes)


def test_attention_keeps_its_additions_in_float(tmp_path: Path) -> None:
    make(attention(), PtqStatic(), tmp_path)
    graph = made(tmp_path)
    by_output = {name: each for each in graph.graph.node for name in each.output}
    (add,) = (each for each in graph.graph.node if each.name == "add")
    assert all(by_output[name].op_type != "DequantizeLinear" for name in add.input)


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.contract import test_nncf as t;"
        "[(t.make(g, r, Path(sys.argv[1])), print(t.digest(Path(sys.argv[1]))))"
        " for g, r in ((t.projected(), t.PtqStatic()),"
        " (t.attention(), t.WeightOnly(bits=4, awq=True, scale_estimation=True)))]"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=300,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    digests = [[line for line in each.splitlines() if line.startswith("sha256:")] for each in said]
    assert len(digests[0]) == 2
    assert digests[0] == digests[1]


def digest(scratch: Path) -> str:
    return "sha256:" + hashlib.sha256((scratch / "out/variant.onnx").read_bytes()).hexdigest()


def source(count: int) -> RowSource:
    return RowSource(path="cal.npz", format=DatasetFormat.NPZ, rows=tuple(range(count)), preprocessing=None)


def test_rows_that_come_first_are_spread_over_all(tmp_path: Path) -> None:
    np.savez(tmp_path / "cal.npz", x=np.arange(12, dtype=np.float32)[:, np.newaxis])
    spec = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 1), batch_axis=0)
    given = CalibrationRows(
        source(12), Signature(inputs=(spec,), outputs=(spec,)), scratch=tmp_path, progress=lambda *_: None, ahead=3
    )
    for _ in range(2):  # NNCF walks them more than once
        assert [int(row["x"][0, 0]) for row in given] == [0, 4, 8, 1, 2, 3, 5, 6, 7, 9, 10, 11]


def test_bias_correction_sees_fewer_rows_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias_correction, "KEPT_BYTES", 1)
    notes = make(projected(), PtqStatic(), tmp_path).notes
    assert notes == (f"Bias correction used 4 of the {ROWS} rows, to bound its memory.",)
    assert noise(tmp_path, projected()) < 0.05


def test_slow_observers_see_fewer_rows_where_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptq_static, "OBSERVED_BYTES", 1)
    notes = make(projected(), PtqStatic(observer="mse"), tmp_path).notes
    assert f"The observer mse saw 32 of the {ROWS} rows, to bound its time." in notes


def run(scratch: Path, graph: onnx.ModelProto, execution: Execution) -> npt.NDArray[np.float32]:
    session = OpenVinoSession((scratch / "out/variant.onnx").read_bytes(), execution, signature(graph), 1)
    return session.infer(rows(graph, 4))["y"].copy()


def test_the_engine_quantizes_activations_only_where_the_variant_says_so(tmp_path: Path) -> None:
    graph = attention()
    execution = make(graph, PtqDynamic(group_size=16), tmp_path).execution
    assert execution.dynamic_group_size == 16
    exact = answers(tmp_path / "out/variant.onnx", rows(graph, 4))
    # float32 sums in another order differ by far less than one step of 8 bits
    np.testing.assert_allclose(run(tmp_path, graph, Execution()), exact, rtol=1e-4, atol=1e-4)
    quantized = run(tmp_path, graph, execution)
    assert np.abs(quantized - exact).max() > 1e-3
    # a step is 1/127 of a group's largest value, half of it is lost, and through three layers errors add up
    assert np.abs(quantized - exact).max() < 0.1 * np.abs(exact).max()


def test_the_group_size_itself_counts(tmp_path: Path) -> None:
    found = []
    for size in (16, 32):
        execution = make(attention(), PtqDynamic(group_size=size), tmp_path).execution
        found.append(run(tmp_path, attention(), execution))
    assert np.abs(found[0] - found[1]).max() > 0


def test_a_group_size_the_engine_ignores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match=r"group_size is 20, .* multiple of 16 only: take 16"):
        make(attention(), PtqDynamic(group_size=20), tmp_path)


def test_a_group_longer_than_every_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match="group_size 64 is more than the 32 inputs"):
        make(plain(), PtqDynamic(group_size=64), tmp_path)


def test_layers_shorter_than_a_group_are_named(tmp_path: Path) -> None:
    notes = make(plain(), PtqDynamic(), tmp_path).notes
    assert notes == ("1 matrix products are shorter than group_size, and their activations stay in float: short.",)


@pytest.mark.parametrize("weights", ["symmetric", "asymmetric"])
def test_dynamic_weights_take_the_form_asked_for(weights: Any, tmp_path: Path) -> None:
    make(attention(), PtqDynamic(weights=weights), tmp_path)
    large = {tensor.data_type for tensor in made(tmp_path).graph.initializer if len(tensor.dims) > 1}
    assert large == {TensorProto.INT8 if weights == "symmetric" else TensorProto.UINT8}


def test_dynamic_quantization_keeps_named_layers_in_float(tmp_path: Path) -> None:
    make(attention(), PtqDynamic(float_layers=("q_proj",)), tmp_path)
    kept = [
        tensor.name for tensor in made(tmp_path).graph.initializer if len(tensor.dims) > 1 and tensor.data_type == 1
    ]
    assert kept == ["wq"]


def test_dynamic_quantization_needs_a_matrix_product(tmp_path: Path) -> None:
    graph = small(
        [node("Conv", ["x", "w"], ["y"], name="conv")],
        inputs={"x": ("n", 3, 8, 8)},
        outputs={"y": ("n", 8, 6, 6)},
        weights={"w": drawn(8, 3, 3, 3)},
    )
    with pytest.raises(ToolchainFailed, match="No MatMul or Gemm of the graph has weights"):
        make(graph, PtqDynamic(), tmp_path)


@pytest.mark.parametrize("build", [attention, projected])
def test_int8_runs_alike_in_both_engines(build: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    graph = build()
    execution = make(graph, PtqStatic(), tmp_path).execution
    exact = answers(tmp_path / "out/variant.onnx", rows(graph, 4))
    found = run(tmp_path, graph, execution)
    # the same integers: where a value lies between two steps, the engines may round to either, and a layer adds few
    assert ((found - exact) ** 2).sum() < 1e-3 * (exact**2).sum()


def test_a_histogram_has_no_channels(tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match=r"'mse' has one range .*: take min_max"):
        make(projected(), PtqStatic(observer="mse", activation_granularity="per_channel"), tmp_path)


def test_nncf_stumbling_is_one_sentence(tmp_path: Path) -> None:
    fed = rows(attention(), ROWS)
    fed["x"] = fed["x"][:, :, : WIDTH // 2]
    graph = attention()
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = WIDTH // 2
    with pytest.raises(ToolchainFailed, match=r"NNCF cannot quantize this graph .*\.$|contradict|not valid|cannot"):
        make(graph, PtqStatic(), tmp_path, fed=fed)


def test_weights_learned_from_no_rows_are_refused(tmp_path: Path) -> None:
    graph = attention()
    onnx.save(graph, tmp_path / "float32.onnx")
    recipe = WeightOnly(bits=4, awq=True)
    spec = TransformSpec(artifact="float32.onnx", signature=signature(graph), recipe=recipe, calibration=None)
    with pytest.raises(ToolchainFailed, match="learn from calibration rows"):
        transform(spec, tmp_path, lambda _share, _words: None)
