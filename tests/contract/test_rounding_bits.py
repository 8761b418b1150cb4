"""Weights of 2 and activations of 4 bits: the engines run int8 kernels all the same, and answer alike."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from app.domain.recipes import PtqStatic
from app.domain.variants import Execution
from tests.contract.test_rounding_pass import RESIDUAL, node, residual, rows, signature, spec_for, stored
from tests.graphs import drawn, small
from workers.measure.kernels import kernels
from workers.openvino_engine import OpenVinoSession
from workers.stage_records.measuring import Form
from workers.toolchains import transform
from workers.toolchains.octet.rounding import by_block, by_layer
from workers.toolchains.octet.rounding.layers import layers_of, read_integers
from workers.toolchains.octet.rounding.levels import Levels, levels_of
from workers.toolchains.octet.rounding.narrow import narrow
from workers.toolchains.octet.rounding.study import Study
from workers.toolchains.octet.rounding.wiring import Wiring

Floats = NDArray[np.float32]
Toolchain = Literal["nncf", "ort"]

TOOLCHAINS: list[Toolchain] = ["nncf", "ort"]
EIGHT, FOUR = 256, 16


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests short: their layers have a few hundred weights."""
    monkeypatch.setattr(by_layer, "MOST_STEPS", 300)
    monkeypatch.setattr(by_block, "MOST_STEPS", 300)


def gemms() -> onnx.ModelProto:
    """Return three Gemms with ReLUs between them."""
    nodes = [
        node("Flatten", ["x"], "f"),
        node("Gemm", ["f", "w1", "b1"], "g1", transB=1),
        node("Relu", ["g1"], "r1"),
        node("Gemm", ["r1", "w2", "b2"], "g2", transB=1),
        node("Relu", ["g2"], "r2"),
        node("Gemm", ["r2", "w3"], "y", transB=1),
    ]
    weights = {"w1": drawn(32, 192), "b1": drawn(32), "w2": drawn(32, 32, seed=1), "b2": drawn(32, seed=2)}
    return small(
        nodes,
        inputs={"x": ["n", 3, 8, 8]},
        outputs={"y": ["n", 8]},
        weights=weights | {"w3": drawn(8, 32, seed=3)},
        opset=21,
    )


def products() -> onnx.ModelProto:
    """Return three MatMuls with Adds behind them."""
    nodes = [
        node("Flatten", ["x"], "f"),
        node("MatMul", ["f", "w1"], "m1"),
        node("Add", ["m1", "b1"], "a1"),
        node("Relu", ["a1"], "r1"),
        node("MatMul", ["r1", "w2"], "m2"),
        node("Add", ["m2", "b2"], "a2"),
        node("Relu", ["a2"], "r2"),
        node("MatMul", ["r2", "w3"], "m3"),
        node("Add", ["m3", "b3"], "y"),
    ]
    weights = {"w1": drawn(192, 32), "b1": drawn(32), "w2": drawn(32, 32, seed=1), "b2": drawn(32, seed=2)}
    weights |= {"w3": drawn(32, 8, seed=3), "b3": drawn(8, seed=4)}
    return small(nodes, inputs={"x": ["n", 3, 8, 8]}, outputs={"y": ["n", 8]}, weights=weights, opset=21)


def branches() -> onnx.ModelProto:
    """Return two convolutions whose outputs a Concat joins for a third."""
    nodes = [
        node("Conv", ["x", "w1"], "c1"),
        node("Relu", ["c1"], "r1"),
        node("Conv", ["x", "w2"], "c2"),
        node("Relu", ["c2"], "r2"),
        node("Concat", ["r1", "r2"], "j", axis=1),
        node("Conv", ["j", "w3"], "y"),
    ]
    weights = {"w1": drawn(4, 3, 3, 3), "w2": drawn(4, 3, 3, 3, seed=1), "w3": drawn(4, 8, 3, 3, seed=2)}
    return small(nodes, inputs={"x": ["n", 3, 8, 8]}, outputs={"y": ["n", 4, 4, 4]}, weights=weights, opset=21)


GRAPHS = {"convolutions": residual, "Gemm": gemms, "MatMul and Add": products}
ENDS = {
    "convolutions": ("conv_c1", "gemm_y"),
    "Gemm": ("gemm_g1", "gemm_y"),
    "MatMul and Add": ("matmul_m1", "matmul_m3"),
}


def made_by(scratch: Path, graph: onnx.ModelProto, **settings: Any) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    result = transform(spec_for(scratch, graph, PtqStatic(**settings)), scratch, lambda _share, _words: None)
    return onnx.load(scratch / result.artifact), result.notes


def levels_in(graph: onnx.ModelProto) -> dict[str, Levels]:
    return {levels.source: levels for levels in levels_of(Wiring(graph.graph)).values()}


def counts(graph: onnx.ModelProto) -> dict[str, int]:
    return {source: each.qmax - each.qmin + 1 for source, each in levels_in(graph).items()}


def run_as_written(graph: onnx.ModelProto, x: Floats) -> Floats:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: Floats = onnxruntime.InferenceSession(graph.SerializeToString(), options).run(None, {"x": x})[0]
    return found


def run_in_openvino(graph: onnx.ModelProto, x: Floats) -> Floats:
    session = OpenVinoSession(graph.SerializeToString(), Execution(), signature(graph), 1)
    found: Floats = session.infer({"x": x})["y"].copy()
    return found


@pytest.mark.parametrize("toolchain", TOOLCHAINS)
@pytest.mark.parametrize("what", GRAPHS)
def test_four_bits_run_int8_kernels_and_both_engines_answer_alike(
    what: str, toolchain: Toolchain, tmp_path: Path
) -> None:
    graph = GRAPHS[what]()
    made, notes = made_by(
        tmp_path, graph, toolchain=toolchain, weight_bits=4, activation_bits=4, int8_layers=ENDS[what]
    )
    form = Form(name="w4a4", artifact="out/variant.onnx", execution=Execution())
    ran = kernels([form], signature(graph), {"x": rows(1)}, scratch=tmp_path, core=openvino.Core())["w4a4"]
    assert (ran.int8_layers, ran.float_layers) == (4 if what == "convolutions" else 3, 0)
    assert notes == ()
    x = rows(64, seed=9)
    ours, exact = run_in_openvino(made, x), run_as_written(made, x)
    assert np.abs(ours - exact).mean() < 0.01 * np.abs(exact).mean()


@pytest.mark.parametrize("toolchain", TOOLCHAINS)
def test_what_layers_multiply_with_has_16_levels_and_the_rest_keeps_256(toolchain: Toolchain, tmp_path: Path) -> None:
    made, notes = made_by(tmp_path, residual(), toolchain=toolchain, activation_bits=4)
    assert notes == ()
    last = {"nncf": "p", "ort": "f"}[toolchain]
    # c3 is only added, r3 only averaged
    assert counts(made) == {"x": FOUR, "r1": FOUR, "r2": FOUR, "c3": EIGHT, "r3": EIGHT, last: FOUR}


@pytest.mark.parametrize("toolchain", TOOLCHAINS)
def test_layers_named_keep_8_bit_inputs(toolchain: Toolchain, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"toolchain": toolchain, "activation_bits": 4, "int8_layers": ENDS["Gemm"]}
    made, notes = made_by(tmp_path, gemms(), **settings)
    assert list(counts(made).values()) == [EIGHT, FOUR, EIGHT]
    assert notes == ()


@pytest.mark.parametrize("toolchain", TOOLCHAINS)
def test_a_layer_named_that_shares_its_input_with_another_is_told(toolchain: Toolchain, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"toolchain": toolchain, "activation_bits": 4, "int8_layers": ("conv_c1", "relu_r1")}
    made, notes = made_by(tmp_path, branches(), **settings)
    assert counts(made)["x"] == FOUR
    assert notes == (
        "Layers conv_c1 in int8_layers read 4-bit activations: other layers read the same ones.",
        "int8_layers names relu_r1, which has no quantized weight or input.",
    )


def test_what_a_concat_joins_keeps_one_scale(tmp_path: Path) -> None:
    levels = levels_in(made_by(tmp_path, branches(), activation_bits=4)[0])
    assert {source for source in levels if counts_of(levels[source]) == FOUR} == {"x", "r1", "r2"}
    assert levels["r1"].scale == levels["r2"].scale != levels["x"].scale


def counts_of(levels: Levels) -> int:
    return levels.qmax - levels.qmin + 1


KINDS: dict[str, tuple[dict[str, Any], tuple[int, int], tuple[int, int]]] = {
    "auto": ({}, (-8, 7), (0, 15)),
    "signed": ({"activation_dtype": "int8"}, (-8, 7), (-8, 7)),
    "unsigned": ({"activation_dtype": "uint8"}, (120, 135), (0, 15)),
    "asymmetric": ({"activations": "asymmetric", "activation_dtype": "uint8"}, (0, 15), (0, 15)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("toolchain", TOOLCHAINS)
def test_the_levels_lie_where_the_type_and_the_zero_point_have_them(
    toolchain: Toolchain, kind: str, tmp_path: Path
) -> None:
    settings, signed, positive = KINDS[kind]
    found = levels_in(made_by(tmp_path, residual(), toolchain=toolchain, activation_bits=4, **settings)[0])
    assert [(found[name].qmin, found[name].qmax) for name in ("x", "r1")] == [signed, positive]
    assert all(each.qmin <= each.zero_point <= each.qmax for each in found.values())


def test_a_scale_errs_less_than_that_of_the_whole_range(tmp_path: Path) -> None:
    x = rows(48)
    levels = levels_in(made_by(tmp_path, residual(), activation_bits=4)[0])["x"]

    def error(scale: float) -> float:
        return float(np.square(np.clip(np.rint(x / scale), levels.qmin, levels.qmax) * scale - x).mean())

    whole = max(x.max() / levels.qmax, x.min() / levels.qmin)
    assert error(float(levels.scale)) < 0.9 * error(float(whole))


def weights_in(graph: onnx.ModelProto) -> list[NDArray[np.int32]]:
    return [
        numpy_helper.to_array(each).astype(np.int32)
        for each in graph.graph.initializer
        if each.data_type == TensorProto.INT8 and len(each.dims) > 1
    ]


@pytest.mark.parametrize("rounding", ["nearest", "adaround", "brecq"])
@pytest.mark.parametrize("toolchain", TOOLCHAINS)
def test_weights_of_two_bits_have_four_values(toolchain: Toolchain, rounding: str, tmp_path: Path) -> None:
    made, _ = made_by(tmp_path, residual(), toolchain=toolchain, weight_bits=2, rounding=rounding)
    found = [set(np.unique(each).tolist()) for each in weights_in(made)]
    assert found[:3] == [{-2, -1, 0, 1}] * 3
    assert found[3] <= {-2, -1, 0, 1}  # it has 32 numbers


def test_learning_may_use_what_nearest_rounding_left_unused(tmp_path: Path) -> None:
    graph = residual()
    coarse = stored(graph, names=RESIDUAL, kind=np.int8)
    wiring, known = Wiring(coarse.graph), Wiring(graph.graph)
    layer = layers_of(wiring)[0][-1]
    weight = np.array([[0.9, -1.1, 0.1, 1.0, -0.9, 0.0, 1.0, -1.0]] * 4, np.float32)
    bounds = narrow(layer, wiring, weight, bits=2)
    study = Study(
        model=coarse,
        wiring=wiring,
        original=graph,
        known=known,
        layers=(layer,),
        sources={},
        bounds={layer.name: bounds},
        spec=spec_for(tmp_path, graph, PtqStatic()),
        scratch=tmp_path,
        folder=tmp_path / "rounding",
        seed=0,
        progress=lambda _share, _words: None,
    )
    used, grid = read_integers(layer, wiring), study.grid(layer)
    assert (used.min(), used.max(), grid.qmin, grid.qmax) == (-1, 1, -2, 1)


@pytest.mark.parametrize("rounding", ["adaround", "brecq"])
def test_learned_rounding_makes_up_for_4_bit_activations_too(rounding: str, tmp_path: Path) -> None:
    graph, x = residual(), rows(256, seed=9)
    exact = run_as_written(graph, x)
    nearest, learnt = (
        np.square(run_as_written(made, x) - exact).sum()
        for made, _ in (
            made_by(tmp_path, graph, weight_bits=2, activation_bits=4, rounding=each) for each in ("nearest", rounding)
        )
    )
    assert learnt < 0.9 * nearest
