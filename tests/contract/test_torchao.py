"""The toolchain `torchao` on every kind of layer: int8 in the file and in the engine, and every field honoured."""

import asyncio
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from app.domain.datasets import DatasetFormat
from app.domain.errors import DatasetUnfit, RecipeInvalid, ToolchainFailed
from app.domain.recipes import PtqStatic
from app.domain.variants import Execution
from tests.contract import programs
from tests.contract.programs import Arrays, Imported, drawn, imported
from workers.limits import Limits
from workers.openvino_engine import OpenVinoSession
from workers.sandbox import run_stage
from workers.stage_records.common import RowSource
from workers.stage_records.making import TransformSpec

COMPUTE = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
VARIANT = "out/variant.onnx"
# A value of one deviation among 255 steps of 8 deviations errs by 8 / 255 / sqrt(12), 41 dB below it; of some ten
# layers one after the other 20 dB may be lost. A wrong scale, axis or layer leaves less than 10 dB.
LEAST_SQNR = 20.0


def image(side: int = 8) -> tuple[Tensor, ...]:
    return (torch.zeros(2, 3, side, side),)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "residual": (programs.Residual, image()),
    "inverted": (programs.Inverted, image(16)),
    "shuffled": (programs.Shuffled, image()),
    "segmenter": (programs.Segmenter, image()),
    "volume": (programs.Volume, (torch.zeros(2, 1, 8, 8, 8),)),
    "sound": (programs.Sound, (torch.zeros(2, 4, 20),)),
    "encoder": (programs.Encoder, (torch.zeros(2, 6, dtype=torch.int64),)),
    "attention": (programs.Attention, (torch.zeros(2, 6, 32),)),
    "recommender": (programs.Recommender, (torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))),
    "shared by two": (programs.SharedByTwo, image()),
}
LAYERS = {
    "residual": 4,
    "inverted": 7,
    "shuffled": 3,
    "segmenter": 4,
    "volume": 2,
    "sound": 3,
    "encoder": 5,
    "attention": 3,
    "recommender": 2,
    "shared by two": 4,
}


def built(name: str, folder: Path, **how: bool) -> Imported:
    module, example = CASES[name]
    torch.manual_seed(0)
    example = tuple(each[:1] for each in example) if how.get("fixed") else example
    return imported(programs.spread(module()), example, folder, **how)


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    return built("residual", tmp_path_factory.mktemp("residual"))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Imported]:
    """One program after the other, quantized by default."""
    model = built(request.param, tmp_path_factory.mktemp("case"))
    assert model.quantize().notes == ()
    return request.param, model


def answers(model: Imported, name: str, rows: Arrays) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return what ONNX Runtime and OpenVINO answer."""
    path = model.folder / name
    first = onnxruntime.InferenceSession(str(path)).run(None, rows)[0]
    engine = OpenVinoSession(path.read_bytes(), Execution(), model.signature, 2)
    return first, engine.infer(rows)[model.signature.outputs[0].name].copy()


def sqnr(plain: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    noise = float(((plain - found) ** 2).sum())
    return 10 * math.log10(float((plain**2).sum()) / max(noise, 1e-30))


def engine_layers(model: Imported) -> list[str]:
    """Return type and precision of the layers that multiply and add, as the engine runs them."""
    engine = OpenVinoSession((model.folder / VARIANT).read_bytes(), Execution(), model.signature, 2)
    facts = [node.get_rt_info() for node in engine.compiled.get_runtime_model().get_ordered_ops()]
    layers = [(each["layerType"].astype(str), each["runtimePrecision"].astype(str)) for each in facts]
    return [f"{kind} {precision}" for kind, precision in layers if kind in COMPUTE]


def constants(graph: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def quantizers(graph: onnx.ModelProto, *, weights: bool) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Yield (scale, zero_point) of every DequantizeLinear on a weight, or on an activation."""
    known = constants(graph)
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and (node.input[0] in known) is weights:
            yield known[node.input[1]], known[node.input[2]]


MADE: dict[tuple[Any, ...], bytes] = {}


def made(model: Imported, **fields: Any) -> onnx.ModelProto:
    """Quantize as these fields say, once for all tests that say the same."""
    key = (model.folder, model.artifact, *sorted(fields.items()))
    path = model.folder / VARIANT
    if key not in MADE:
        model.quantize(PtqStatic(toolchain="torchao", **fields))
        MADE[key] = path.read_bytes()
    path.write_bytes(MADE[key])
    return model.graph()


def check_answers(name: str, model: Imported) -> None:
    rows = drawn(model.signature, CASES[name][1], rows=5, seed=3)
    plain, _ = answers(model, model.artifact, rows)
    assert min(sqnr(plain, found) for found in answers(model, VARIANT, rows)) > LEAST_SQNR


def test_both_engines_answer_nearly_as_float(case: tuple[str, Imported]) -> None:
    check_answers(*case)


def test_every_layer_runs_in_int8(case: tuple[str, Imported]) -> None:
    name, model = case
    layers = engine_layers(model)
    assert not [layer for layer in layers if layer.endswith(" f32")]
    assert len(layers) >= LAYERS[name]


def test_layers_keep_their_names(case: tuple[str, Imported]) -> None:
    _, model = case
    names = [
        [node.name for node in graph.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "Gather")]
        for graph in (model.graph(model.artifact), model.graph())
    ]
    assert names[0] == names[1]


def test_every_weight_is_stored_as_int8(case: tuple[str, Imported]) -> None:
    name, model = case
    # weights, and not the constants of eight channels that write a batch normalization out
    large = [values for values in constants(model.graph()).values() if values.ndim > 1 and values.size >= 32]
    kinds = [values.dtype.name for values in large]
    assert kinds.count("int8") >= LAYERS[name] - 1  # "shared by two" stores what is shared once or twice
    assert kinds.count("float32") == 0


def test_weights_are_stored_in_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3), nn.ReLU())
    model = imported(wide, image(), tmp_path)
    model.quantize()
    ratio = (tmp_path / VARIANT).stat().st_size / (tmp_path / model.artifact).stat().st_size
    assert ratio < 0.27


@pytest.mark.parametrize("name", ["shuffled", "recommender"])
def test_a_program_fixed_to_one_row_becomes_symbolic(name: str, tmp_path: Path) -> None:
    model = built(name, tmp_path, fixed=True)
    assert model.signature.batched
    model.quantize()
    check_answers(name, model)


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_a_decomposed_program_is_quantized_alike(name: str, tmp_path: Path) -> None:
    model = built(name, tmp_path, decomposed=True)
    model.quantize()
    check_answers(name, model)
    assert len([layer for layer in engine_layers(model) if not layer.endswith(" f32")]) >= LAYERS[name]


def test_a_layer_left_in_float_keeps_its_weight(residual: Imported) -> None:
    convolution = next(node for node in residual.graph(residual.artifact).graph.node if node.op_type == "Conv")
    graph = made(residual, float_layers=(convolution.name,))
    floats = [values for values in constants(graph).values() if values.ndim > 1 and values.dtype == np.float32]
    assert len(floats) == 1
    np.testing.assert_allclose(
        floats[0], constants(residual.graph(residual.artifact))[convolution.input[1]], rtol=0, atol=1e-6
    )


def test_every_layer_can_be_left_in_float_but_not_all(residual: Imported) -> None:
    names = tuple(node.name for node in residual.graph(residual.artifact).graph.node)
    with pytest.raises(ToolchainFailed, match="no layer to quantize"):
        made(residual, float_layers=names)


def test_an_unknown_float_layer_is_refused(residual: Imported) -> None:
    with pytest.raises(ToolchainFailed, match="'conv9', but the graph has no such node"):
        made(residual, float_layers=("conv9",))


def test_a_float_layer_without_weights_is_noted(residual: Imported) -> None:
    relu = next(node.name for node in residual.graph(residual.artifact).graph.node if node.op_type == "Relu")
    result = residual.quantize(PtqStatic(toolchain="torchao", float_layers=(relu,)))
    assert result.notes == (f"float_layers names '{relu}', no layer with weights: torchao took no notice.",)


def test_float_layers_of_another_graph_are_refused(residual: Imported, tmp_path: Path) -> None:
    other = built("inverted", tmp_path)
    mixed = Imported(folder=residual.folder, artifact="other.onnx", signature=residual.signature)
    graph = other.graph(other.artifact)
    onnx.save(graph, residual.folder / "other.onnx")
    name = next(node.name for node in graph.graph.node if node.op_type == "Conv")
    with pytest.raises(ToolchainFailed, match="not those of its float32 graph one by one"):
        made(mixed, float_layers=(name,))


def test_an_embedding_can_be_left_in_float(tmp_path: Path) -> None:
    model = built("recommender", tmp_path)
    name = next(node.name for node in model.graph(model.artifact).graph.node if node.op_type == "Gather")
    kinds = [values.dtype for values in constants(made(model, float_layers=(name,))).values() if values.ndim > 1]
    assert sorted(kind.name for kind in kinds) == ["float32", "int8", "int8", "int8"]


def test_float_precision_goes_into_the_execution(residual: Imported) -> None:
    result = residual.quantize(PtqStatic(toolchain="torchao", float_precision="bfloat16"))
    assert result.execution == Execution(float_precision="bfloat16")


def test_symmetric_activations_are_unsigned_only_where_nothing_is_negative(residual: Imported) -> None:
    zeros = [zero for _, zero in quantizers(made(residual), weights=False)]
    assert {zero.dtype.name for zero in zeros} == {"uint8", "int8"}
    assert all((zero == 0).all() for zero in zeros)


def test_asymmetric_activations_have_zero_points(residual: Imported) -> None:
    zeros = [zero for _, zero in quantizers(made(residual, activations="asymmetric"), weights=False)]
    assert {zero.dtype.name for zero in zeros} == {"uint8"}
    assert any((zero != 0).any() for zero in zeros)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("activations", ["symmetric", "asymmetric"])
def test_the_activations_data_type_is_honoured(residual: Imported, dtype: str, activations: str) -> None:
    zeros = [
        zero for _, zero in quantizers(made(residual, activation_dtype=dtype, activations=activations), weights=False)
    ]
    assert {zero.dtype.name for zero in zeros} == {dtype}


def test_symmetric_uint8_puts_zero_in_the_middle(residual: Imported) -> None:
    graph = made(residual, activation_dtype="uint8")
    assert {int(zero) for _, zero in quantizers(graph, weights=False)} == {0, 128}


def test_min_max_reaches_the_extremes(residual: Imported) -> None:
    first = next(quantizers(made(residual), weights=False))[0]
    rows = np.load(residual.folder / "cal.npz")["x"]
    # float32 holds the scale to 2**-24 of it
    assert float(first) == pytest.approx(np.abs(rows).max() / 127, rel=2**-22)


def test_mse_chooses_other_ranges_and_never_wider_ones(residual: Imported) -> None:
    wide, narrow = (
        [float(scale) for scale, _ in quantizers(made(residual, observer=kind), weights=False)]
        for kind in ("min_max", "mse")
    )
    assert wide != narrow
    # a histogram's bin is 1 / 2048 of the range: its edges may lie so much further out
    assert all(b <= a * (1 + 2 / 2048) for a, b in zip(wide, narrow, strict=True))


@pytest.mark.parametrize("weights", ["symmetric", "asymmetric"])
def test_weight_granularity_sets_the_number_of_scales(residual: Imported, weights: str) -> None:
    found = [
        sorted(
            scale.size
            for scale, _ in quantizers(made(residual, weights=weights, weight_granularity=each), weights=True)
        )
        for each in ("per_channel", "per_tensor")
    ]
    assert found == [[10, 16, 16, 16], [1, 1, 1, 1]]


def test_asymmetric_weights_have_zero_points(residual: Imported) -> None:
    assert all((zero == 0).all() for _, zero in quantizers(made(residual), weights=True))
    assert any((zero != 0).any() for _, zero in quantizers(made(residual, weights="asymmetric"), weights=True))


def test_every_weight_is_within_half_a_step_of_the_folded_one(residual: Imported) -> None:
    graph, float32 = made(residual), constants(residual.graph(residual.artifact))
    known = constants(graph)
    layers = [node for node in residual.graph(residual.artifact).graph.node if node.op_type in ("Conv", "Gemm")]
    sources = {output: node for node in graph.graph.node for output in node.output}
    for node in layers:
        dequantize = sources[next(each for each in graph.graph.node if each.name == node.name).input[1]]
        scale = known[dequantize.input[1]].reshape(-1, *[1] * (known[dequantize.input[0]].ndim - 1))
        stored = known[dequantize.input[0]] * scale
        # half a step, and the float32 rounding of two ways to fold a batch normalization
        assert (np.abs(stored - float32[node.input[1]]) <= scale * (0.5 + 1e-3)).all()


def test_batch_normalizations_stay_where_the_recipe_says_so(residual: Imported) -> None:
    kinds = [[node.op_type for node in made(residual, fold_batch_norm=fold).graph.node] for fold in (True, False)]
    # each is written as a product and a sum, as the residual sum is one
    assert [(each.count("Mul"), each.count("Add")) for each in kinds] == [(0, 1), (2, 3)]
    check_answers("residual", residual)


def test_joined_tensors_share_one_scale(tmp_path: Path) -> None:
    graph = built("segmenter", tmp_path)
    graph.quantize()
    nodes = graph.graph().graph.node
    sources = {output: node for node in nodes for output in node.output}
    join = next(node for node in nodes if node.op_type == "Concat")
    inputs = [sources[name] for name in join.input]
    assert [node.op_type for node in inputs] == ["DequantizeLinear"] * 2
    known = constants(graph.graph())
    assert known[inputs[0].input[1]] == known[inputs[1].input[1]]


def test_a_tensor_is_quantized_once_for_all_its_readers(residual: Imported) -> None:
    read = [node.input[0] for node in made(residual).graph.node if node.op_type == "QuantizeLinear"]
    assert len(read) == len(set(read))


def test_a_recurrent_layer_stays_in_float_and_is_noted(tmp_path: Path) -> None:
    model = imported(programs.Recurrent(linear=True), (torch.zeros(2, 6, 8),), tmp_path)
    result = model.quantize()
    assert result.notes == ("The recurrent layers stay in float: torchao has no static quantization for them.",)
    assert engine_layers(model) == ["FullyConnected u8"]


def test_a_model_of_recurrent_layers_alone_is_refused(tmp_path: Path) -> None:
    model = imported(programs.Recurrent(linear=False), (torch.zeros(2, 6, 8),), tmp_path)
    with pytest.raises(ToolchainFailed, match=r"no layer to quantize \(recurrent layers stay in float\)"):
        model.quantize()


def test_a_transposed_convolution_in_groups_stays_in_float_and_is_noted(tmp_path: Path) -> None:
    model = imported(programs.Upscaler(), image(), tmp_path)
    result = model.quantize()
    assert result.notes == (
        "The transposed convolutions in groups stay in float: OpenVINO has no int8 kernel for them.",
    )
    assert sorted(engine_layers(model)) == ["Convolution u8", "Convolution u8", "Deconvolution f32"]


def test_without_the_pt2_the_sentence_names_another_toolchain(residual: Imported) -> None:
    with pytest.raises(ToolchainFailed, match=r"torchao starts from a \.pt2 upload"):
        residual.quantize(upload=None)


def test_rows_with_nan_are_refused(tmp_path: Path) -> None:
    model = built("segmenter", tmp_path)
    rows = np.load(tmp_path / "cal.npz")["x"]
    rows[3, 0, 0, 0] = np.nan
    np.savez(tmp_path / "cal.npz", x=rows)
    with pytest.raises(ToolchainFailed, match="not a number"):
        model.quantize()


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = built("segmenter", tmp_path)
    np.savez(tmp_path / "cal.npz", x=np.zeros((programs.ROWS, 3, 9, 9), np.float32))
    with pytest.raises(DatasetUnfit, match="the model takes"):
        model.quantize()


@pytest.mark.parametrize(
    ("field", "value"),
    [("observer", "entropy"), ("bias_correction", "fast"), ("smooth_quant", 0.5), ("channel_equalization", True)],
)
def test_what_torchao_has_not_is_refused_by_the_recipe(field: str, value: Any) -> None:
    with pytest.raises(RecipeInvalid, match=f"'torchao' has no {field}"):
        PtqStatic(toolchain="torchao", **{field: value})


def test_the_stage_runs_confined(residual: Imported) -> None:
    rows = RowSource(path="cal.npz", format=DatasetFormat.NPZ, rows=tuple(range(programs.ROWS)), preprocessing=None)
    recipe = PtqStatic(toolchain="torchao")
    spec = TransformSpec(
        artifact=residual.artifact,
        signature=residual.signature,
        recipe=recipe,
        calibration=rows,
        upload=programs.UPLOAD,
    )
    limits = Limits(memory_bytes=2 * 2**30, scratch_bytes=256 * 2**20, seconds=200)

    async def ignore(*_: object) -> None:
        pass

    ran = run_stage("transform", spec, scratch=residual.folder, limits=limits, on_progress=ignore, on_log=ignore)
    assert asyncio.run(ran).artifact == VARIANT
    check_answers("residual", residual)


QUIET = """
import sys
import workers.toolchains.torchao.ptq_static
compilers = [name for name in sys.modules if name.startswith(("torch._inductor.compile_fx", "triton"))]
assert not compilers, compilers
"""


def test_loading_the_toolchain_loads_no_compiler() -> None:
    ran = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()
