"""One contract for every technique of every toolchain, and what NNCF's and the cast's fields do to a graph."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from app.domain.datasets import DatasetFormat
from app.domain.errors import DatasetUnfit, PrecisionUnavailable, ToolchainFailed
from app.domain.recipes import Cast, PtqDynamic, PtqStatic, Single, WeightOnly
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution
from tests import graphs
from workers.openvino_engine import OpenVinoSession
from workers.stage_records.common import RowSource
from workers.stage_records.making import TransformSpec
from workers.toolchains import transform

ROWS = 24
FLOAT = "float32.onnx"
PROGRAM = "upload.pt2"
Steps = list[tuple[float, str]]
Array = npt.NDArray[np.float32]

HAS_BFLOAT16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no bfloat16 instructions")

# Every pair of toolchain and technique: a line here, and the whole suite holds it to the contract.
PAIRS: dict[str, Single] = {
    "nncf/ptq_static": PtqStatic(),
    "nncf/ptq_dynamic": PtqDynamic(),
    "nncf/weight_only, int8": WeightOnly(),
    "nncf/weight_only, int4": WeightOnly(bits=4),
    "ort/ptq_static": PtqStatic(toolchain="ort"),
    "ort/ptq_dynamic": PtqDynamic(toolchain="ort"),
    "torchao/ptq_static": PtqStatic(toolchain="torchao"),
    "octet/cast, bfloat16": Cast(),
    "octet/cast, float16": Cast(precision="float16"),
}
EVERY_RECIPE = [
    pytest.param(recipe, id=name, marks=needs_bfloat16 if name.endswith("bfloat16") else ())
    for name, recipe in PAIRS.items()
]
WITH_LAYERS = [each for each in EVERY_RECIPE if hasattr(each.values[0], "float_layers")]
WITH_ROWS = [each for each in EVERY_RECIPE if isinstance(each.values[0], PtqStatic)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What a pair made of the classifier."""

    path: Path
    execution: Execution
    notes: tuple[str, ...]

    @property
    def graph(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    def in_onnxruntime(self, rows: Array) -> Array:
        return answers(self.path, rows)

    def in_openvino(self, rows: Array) -> Array:
        session = OpenVinoSession(self.path.read_bytes(), self.execution, signature(), 1)
        found: Array = np.array(session.infer({graphs.INPUT: rows})[graphs.OUTPUT], copy=True)
        return found


class Classifier(nn.Module):
    """`graphs.conv_classifier` in torch, with the same weights."""

    def __init__(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32, 4)
        for number, layer in enumerate((self.conv1, self.conv2, self.fc), start=1):
            layer.weight.data = torch.from_numpy(weights[f"w{number}"].copy())
            layer.bias.data = torch.from_numpy(weights[f"b{number}"].copy())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))
        return found


def signature(*, batch: int | None = None) -> Signature:
    axis = 0 if batch is None else None
    return Signature(
        inputs=(TensorSpec(name=graphs.INPUT, dtype=DType.FLOAT32, shape=(batch, 3, 8, 8), batch_axis=axis),),
        outputs=(TensorSpec(name=graphs.OUTPUT, dtype=DType.FLOAT32, shape=(batch, 4), batch_axis=axis),),
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The classifier as a `.pt2`."""
    path = tmp_path_factory.mktemp("program") / PROGRAM
    module = Classifier(constants(graphs.conv_classifier())).eval()
    axes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=axes), path)
    return path.read_bytes()


def fill(folder: Path, program: bytes) -> Path:
    onnx.save(graphs.conv_classifier(), folder / FLOAT)
    graphs.save_dataset(folder / "cal.npz", graphs.rows(ROWS) + 0.3)
    (folder / PROGRAM).write_bytes(program)
    return folder


@pytest.fixture
def scratch(tmp_path: Path, program: bytes) -> Path:
    return fill(tmp_path, program)


@pytest.fixture(scope="module", params=EVERY_RECIPE)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, program: bytes) -> Variant:
    """What each pair makes of the classifier, made once for the tests that only look at it."""
    return run(fill(tmp_path_factory.mktemp("variant"), program), request.param)


def run(
    scratch: Path, recipe: Single, *, rows: int = ROWS, batch: int | None = None, steps: Steps | None = None
) -> Variant:
    source = RowSource(path="cal.npz", format=DatasetFormat.NPZ, rows=tuple(range(rows)), preprocessing=None)
    spec = TransformSpec(
        artifact=FLOAT, signature=signature(batch=batch), recipe=recipe, calibration=source, upload=PROGRAM
    )
    told: Steps = [] if steps is None else steps
    result = transform(spec, scratch, lambda share, words: told.append((share, words)))
    return Variant(path=scratch / result.artifact, execution=result.execution, notes=result.notes)


def make(
    scratch: Path, recipe: Single, *, rows: int = ROWS, batch: int | None = None, steps: Steps | None = None
) -> onnx.ModelProto:
    return run(scratch, recipe, rows=rows, batch=batch, steps=steps).graph


def answers(path: Path, rows: Array) -> Array:
    found: Array = onnxruntime.InferenceSession(str(path)).run(None, {graphs.INPUT: rows})[0]
    return found


def float32_answers(rows: Array) -> Array:
    session = onnxruntime.InferenceSession(graphs.conv_classifier().SerializeToString())
    found: Array = session.run(None, {graphs.INPUT: rows})[0]
    return found


def distance(found: Array, expected: Array) -> float:
    """Return the energy of the difference as a share of what was expected."""
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


def constants(graph: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def test_a_variant_is_smaller_than_float32(variant: Variant) -> None:
    assert variant.path.stat().st_size < len(graphs.conv_classifier().SerializeToString())


# 8 bits, or 4 in the weights alone, through three layers leave noise of some hundredths of the energy; a wrong graph,
# of about all of it.
MOST_NOISE = 0.1


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_variant_answers_any_batch_in_both_engines(rows: int, variant: Variant) -> None:
    x = graphs.rows(rows, seed=3)
    expected = float32_answers(x)
    for found in (variant.in_onnxruntime(x), variant.in_openvino(x)):
        assert found.shape == (rows, 4)
        assert distance(found, expected) < MOST_NOISE


def test_both_engines_give_the_same_answers(variant: Variant) -> None:
    x = graphs.rows(16, seed=4)
    # values on the border of two of 255 steps may fall to either side, and bfloat16 keeps 8 bits: through three layers
    # some hundredths of the amplitude, so less than a hundredth of the energy
    assert distance(variant.in_openvino(x), variant.in_onnxruntime(x)) < 0.01


def test_a_variant_keeps_the_signature(variant: Variant) -> None:
    expected, found = graphs.conv_classifier().graph, variant.graph.graph
    for ours, theirs in ((found.input, expected.input), (found.output, expected.output)):
        assert [value.name for value in ours] == [value.name for value in theirs]
        for value, other in zip(ours, theirs, strict=True):
            tensor, wanted = value.type.tensor_type, other.type.tensor_type
            assert tensor.elem_type == wanted.elem_type
            assert [dim.dim_value for dim in tensor.shape.dim] == [dim.dim_value for dim in wanted.shape.dim]
            assert tensor.shape.dim[0].dim_param


def test_a_variant_uses_standard_operators_alone(variant: Variant) -> None:
    assert {entry.domain for entry in variant.graph.opset_import} == {""}
    assert {node.domain for node in variant.graph.graph.node} <= {"", "ai.onnx"}


@pytest.mark.parametrize("recipe", EVERY_RECIPE)
def test_the_same_recipe_makes_the_same_file(recipe: Single, tmp_path: Path, program: bytes) -> None:
    folders = [tmp_path / name for name in ("once", "again")]
    for folder in folders:
        folder.mkdir()
    once, again = (run(fill(folder, program), recipe) for folder in folders)
    assert once.path.read_bytes() == again.path.read_bytes()
    assert once.notes == again.notes


@pytest.mark.parametrize("recipe", WITH_LAYERS)
def test_float_layers_stay_in_float(recipe: Any, scratch: Path) -> None:
    made = make(scratch, replace(recipe, float_layers=("conv2",)))
    layer = next(node for node in made.graph.node if node.name == "conv2")
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert (layer.op_type, kinds.get(layer.input[1])) == ("Conv", TensorProto.FLOAT)
    assert set(kinds.values()) & {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}


@pytest.mark.parametrize("recipe", WITH_LAYERS)
def test_an_unknown_float_layer_is_refused_with_names_like_it(recipe: Any, scratch: Path) -> None:
    with pytest.raises(ToolchainFailed, match=r"'conv9', but the graph has no such node; .* conv1"):
        make(scratch, replace(recipe, float_layers=("conv9",)))


@pytest.mark.parametrize("recipe", EVERY_RECIPE)
def test_a_variant_carries_nobody_s_notes(recipe: Single, scratch: Path) -> None:
    noted = graphs.conv_classifier()
    noted.doc_string = noted.graph.node[0].doc_string = "made by somebody"
    noted.metadata_props.add(key="path", value="secret")
    onnx.save(noted, scratch / FLOAT)
    made = run(scratch, recipe)
    content = made.path.read_bytes() + " ".join(made.notes).encode()
    assert b"somebody" not in content
    assert b"secret" not in content


@pytest.mark.parametrize("recipe", WITH_ROWS)
def test_calibration_rows_of_another_shape_are_refused(recipe: Single, scratch: Path) -> None:
    graphs.save_dataset(scratch / "cal.npz", graphs.rows(ROWS, side=9))
    with pytest.raises(DatasetUnfit, match="the model takes"):
        make(scratch, recipe)


@pytest.mark.parametrize("recipe", WITH_ROWS)
def test_every_calibration_row_is_read_and_told(recipe: Single, scratch: Path) -> None:
    steps: Steps = []
    make(scratch, recipe, steps=steps)
    assert [words for _, words in steps if "calibrating" in words][-1] == f"calibrating: {ROWS} of {ROWS} rows"
    shares = [share for share, _ in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("recipe", EVERY_RECIPE)
def test_a_graph_fixed_to_one_row_keeps_its_row(recipe: Single, scratch: Path) -> None:
    fixed = graphs.conv_classifier()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, scratch / FLOAT)
    made = run(scratch, recipe, batch=1)
    x = graphs.rows(1, seed=3)
    assert distance(made.in_onnxruntime(x), float32_answers(x)) < MOST_NOISE


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("recipe", EVERY_RECIPE)
def test_every_opset_is_taken(recipe: Single, opset: int, scratch: Path) -> None:
    old = graphs.conv_classifier()
    old.opset_import[0].version = opset
    onnx.save(old, scratch / FLOAT)
    made = run(scratch, recipe)
    x = graphs.rows(2, seed=3)
    assert made.graph.opset_import[0].version >= 13
    assert distance(made.in_onnxruntime(x), float32_answers(x)) < MOST_NOISE


def quantizers(graph: onnx.ModelProto, *, weights: bool) -> Iterator[tuple[npt.NDArray[np.generic], ...]]:
    """Yield (scale, zero_point) of every DequantizeLinear on a weight, or on an activation."""
    known = constants(graph)
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and (node.input[0] in known) is weights:
            yield known[node.input[1]], known[node.input[2]]


def biases(graph: onnx.ModelProto) -> npt.NDArray[np.float32]:
    known = constants(graph)
    return np.concatenate([known[name].ravel() for name in ("b1", "b2", "b3") if name in known]).astype(np.float32)


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


def test_bias_correction_none_leaves_the_biases(scratch: Path) -> None:
    made = make(scratch, PtqStatic(bias_correction="none"))
    np.testing.assert_array_equal(biases(made), biases(graphs.conv_classifier()))


def test_fast_and_full_bias_correction_differ(scratch: Path) -> None:
    fast, full = (make(scratch, PtqStatic(bias_correction=kind)) for kind in ("fast", "full"))
    plain = biases(graphs.conv_classifier())
    assert np.abs(biases(fast) - plain).max() > 0
    assert np.abs(biases(full) - plain).max() > 0
    assert np.abs(biases(fast) - biases(full)).max() > 0


def test_a_recipe_that_leaves_nothing_to_quantize_fails(scratch: Path) -> None:
    names = tuple(node.name for node in graphs.conv_classifier().graph.node)
    with pytest.raises(ToolchainFailed, match="no layer to quantize"):
        make(scratch, PtqStatic(float_layers=names))


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
