"""The casts against the arithmetic of their floats."""

import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from app.domain.errors import ToolchainFailed
from app.domain.recipes import Cast
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution
from tests import graphs
from workers.graphs import tensors_of
from workers.stage_records.making import TransformResult, TransformSpec
from workers.toolchains import transform

FLOAT = "float32.onnx"
HAS_BFLOAT16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no bfloat16 instructions")
PRECISIONS = [pytest.param("bfloat16", marks=needs_bfloat16), "float16"]
Array = npt.NDArray[np.float32]


def signature(shape: tuple[int | None, ...], answer: tuple[int | None, ...]) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", dtype=DType.FLOAT32, shape=shape),),
        outputs=(TensorSpec(name="y", dtype=DType.FLOAT32, shape=answer),),
    )


def product(weight: Array) -> onnx.ModelProto:
    """Return x @ weight; the identity for x gives the weight as it is used."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    rows, columns = weight.shape
    return graphs.small([node], inputs={"x": ["n", rows]}, outputs={"y": ["n", columns]}, weights={"w": weight})


def cast(graph: onnx.ModelProto, precision: str, folder: Path, *, spec: Signature | None = None) -> TransformResult:
    onnx.save(graph, folder / FLOAT)
    recipe = Cast(precision="float16" if precision == "float16" else "bfloat16")
    wanted = spec or signature((None, 16), (None, 16))
    order = TransformSpec(artifact=FLOAT, signature=wanted, recipe=recipe, calibration=None)
    return transform(order, folder, lambda _share, _words: None)


def used(folder: Path, rows: int = 16) -> Array:
    """Ask the variant for the weight as it is used."""
    session = onnxruntime.InferenceSession(str(folder / "out/variant.onnx"))
    answer: Array = session.run(None, {"x": np.eye(rows, dtype=np.float32)})[0]
    return answer


def across_the_range(low: int, high: int) -> Array:
    """Draw values of every size from 2**low to 2**high, of both signs."""
    rng = np.random.default_rng(0)
    sizes = rng.uniform(1, 2, 256) * np.exp2(rng.integers(low, high, 256))
    values: Array = (sizes * rng.choice([-1, 1], 256)).astype(np.float32).reshape(16, 16)
    return values


@pytest.mark.parametrize(("precision", "bits"), [pytest.param("bfloat16", 8, marks=needs_bfloat16), ("float16", 11)])
def test_a_weight_errs_by_half_a_unit_in_the_last_place(precision: str, bits: int, tmp_path: Path) -> None:
    # normal numbers of both floats; a significand of p bits rounds by at most 2**-p of the value
    weight = across_the_range(-14, 15)
    cast(product(weight), precision, tmp_path)
    error = np.abs(used(tmp_path).astype(np.float64) - weight)
    assert (error <= 2.0**-bits * np.abs(weight)).all()
    assert error.max() > 0


def test_weights_below_float16_s_normal_numbers_err_by_half_the_smallest_step(tmp_path: Path) -> None:
    weight = across_the_range(-30, -14)
    cast(product(weight), "float16", tmp_path)
    # subnormal numbers are 2**-24 apart
    assert np.abs(used(tmp_path).astype(np.float64) - weight).max() <= 2.0**-25


@pytest.mark.parametrize(("precision", "kind"), [pytest.param("bfloat16", ml_dtypes.bfloat16, marks=needs_bfloat16)])
def test_a_bfloat16_weight_is_the_nearest_one(precision: str, kind: type, tmp_path: Path) -> None:
    weight = across_the_range(-100, 100)
    cast(product(weight), precision, tmp_path)
    np.testing.assert_array_equal(used(tmp_path), weight.astype(kind).astype(np.float32))


@pytest.mark.parametrize("value", [65505.0, 65519.0, 1e6, -7e4])
def test_a_weight_beyond_float16_stays_float32_and_is_named(value: float, tmp_path: Path) -> None:
    small, large = across_the_range(-3, 3), across_the_range(-3, 3)
    large[3, 5] = value
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    weights = {"a": small, "b": large}
    graph = graphs.small(nodes, inputs={"x": ["n", 16]}, outputs={"y": ["n", 16]}, weights=weights)
    made = cast(graph, "float16", tmp_path)
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / made.artifact).graph.initializer}
    assert kinds == {"a_float16": TensorProto.FLOAT16, "b": TensorProto.FLOAT}
    assert made.notes == ("Weights that hold values beyond 65504, float16's largest, stay float32: b (1 in all).",)


@pytest.mark.parametrize("value", [65504.0, -65504.0, np.inf, -np.inf])
def test_float16_s_largest_and_infinite_values_are_kept(value: float, tmp_path: Path) -> None:
    weight = across_the_range(-3, 3)
    weight[2, 2] = value
    made = cast(product(weight), "float16", tmp_path)
    stored = numpy_helper.to_array(onnx.load(tmp_path / made.artifact).graph.initializer[0])
    assert stored.dtype == np.float16
    assert stored[2, 2] == np.float32(value)
    assert made.notes == ()


def test_a_graph_of_which_no_weight_fits_float16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match=r"no float32 weight .* to cast to float16"):
        cast(product(np.full((16, 16), 1e5, np.float32)), "float16", tmp_path)


def test_float16_asks_no_instructions_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "Core", None)
    made = cast(product(across_the_range(-3, 3)), "float16", tmp_path)
    assert made.execution == Execution(float_precision="float32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cast_halves_the_file(precision: str, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(0, 1, (256, 256)).astype(np.float32)
    cast(product(weight), precision, tmp_path, spec=signature((None, 256), (None, 256)))
    ratio = (tmp_path / "out/variant.onnx").stat().st_size / (tmp_path / FLOAT).stat().st_size
    # 256 KiB of weights to 128 KiB, and a few hundred bytes for the graph
    assert 0.5 <= ratio < 0.51


class Reader(torch.nn.Module):
    """An embedding and a recurrent layer, as the exporter writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(40, 16)
        self.cell = torch.nn.LSTM(16, 24, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.cell(self.table(x))[0]
        return answer


@pytest.fixture(scope="module")
def recurrent() -> onnx.ModelProto:
    torch.manual_seed(0)
    rows = {"x": {0: torch.export.Dim("rows")}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attributes", UserWarning)  # torch's own recurrent cells
        program = torch.export.export(Reader().eval(), (torch.zeros(2, 5, dtype=torch.int64),), dynamic_shapes=rows)
    exported = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False)
    assert exported is not None
    graph: onnx.ModelProto = exported.model_proto
    graph.graph.output[0].name = graph.graph.node[-1].output[0] = "y"
    return graph


def recurrent_signature() -> Signature:
    x = TensorSpec(name="x", dtype=DType.INT64, shape=(None, 5))
    return Signature(inputs=(x,), outputs=(TensorSpec(name="y", dtype=DType.FLOAT32, shape=(None, 5, 24)),))


def test_weights_of_recurrent_layers_and_embeddings_are_cast(recurrent: onnx.ModelProto, tmp_path: Path) -> None:
    made = cast(recurrent, "float16", tmp_path, spec=recurrent_signature())
    tensors = onnx.load(tmp_path / made.artifact).graph.initializer
    assert not [tensor.name for tensor in tensors if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1]
    x = {"x": np.arange(10).reshape(2, 5)}
    plain, variant = (
        onnxruntime.InferenceSession(str(tmp_path / each)).run(None, x)[0] for each in (FLOAT, "out/variant.onnx")
    )
    # |h| <= 1 and gates of slope 1 at most: five steps of 41 products, each weight off by 2**-11 of values below 4
    assert np.abs(plain - variant).max() < 5 * 41 * 4 * 2.0**-11
    assert np.abs(plain - variant).max() > 0


def test_openvino_runs_a_recurrent_layer_with_cast_weights(recurrent: onnx.ModelProto, tmp_path: Path) -> None:
    made = cast(recurrent, "float16", tmp_path, spec=recurrent_signature())
    core = openvino.Core()
    hint = {"INFERENCE_PRECISION_HINT": openvino.Type.f32}
    compiled = core.compile_model(core.read_model(tmp_path / made.artifact), "CPU", hint)
    kinds = {node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ordered_ops()}
    assert "RNNSeq" in kinds


def test_weights_in_constant_nodes_and_in_branches_are_cast(tmp_path: Path) -> None:
    weight = across_the_range(-3, 3)
    tensor = numpy_helper.from_array(weight, "inside")
    y = helper.make_tensor_value_info("branch_y", TensorProto.FLOAT, ["n", 16])
    inner = helper.make_graph([helper.make_node("MatMul", ["h", "inside"], ["branch_y"])], "then", [], [y], [tensor])
    other = helper.make_graph([helper.make_node("Identity", ["h"], ["branch_y"])], "else", [], [y])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weight, "")),
        helper.make_node("MatMul", ["x", "c"], ["h"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=other),
    ]
    yes = {"yes": np.array(True)}  # noqa: FBT003 - an array of one boolean
    graph = graphs.small(nodes, inputs={"x": ["n", 16]}, outputs={"y": ["n", 16]}, weights=yes)
    cast(graph, "float16", tmp_path)
    tensors = list(tensors_of(onnx.load(tmp_path / "out/variant.onnx")))
    assert [tensor.data_type for tensor in tensors if len(tensor.dims) > 1] == [TensorProto.FLOAT16] * 2
    half = weight.astype(np.float16).astype(np.float32)
    # 16 products of values up to 8 * 8, summed in another order: 16 * 64 * 16 roundings of 2**-24
    np.testing.assert_allclose(used(tmp_path), half @ half, rtol=0, atol=16 * 64 * 16 * 2.0**-24)
