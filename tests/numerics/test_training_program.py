"""The graph in torch answers like ONNX Runtime, and what is written back is the graph that was read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from app.domain.errors import ToolchainFailed
from app.domain.recipes import Qat
from tests import graphs
from tests.graphs import Shape, conv_classifier, drawn, small
from tests.quantized import Array, Arrays, Grids, answers, quantized
from workers.training import biases
from workers.training.losses import Objective
from workers.training.program import Program
from workers.training.quantizers import Scales
from workers.training.starting import Begun, notes_of

node = helper.make_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A float graph, rows for it and its bits."""

    model: onnx.ModelProto
    inputs: Arrays

    def quantized(self, grids: Grids) -> onnx.ModelProto:
        return quantized(self.model, self.inputs, grids)


def graph(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], inputs: Arrays, outputs: dict[str, Shape], **kinds: int
) -> Case:
    shapes: dict[str, Shape] = {name: ["n", *array.shape[1:]] for name, array in inputs.items()}
    model = small(nodes, inputs=shapes, outputs=outputs, weights=weights, types=kinds)
    return Case(model=model, inputs=inputs)


def rows(*shape: int, seed: int = 9) -> Array:
    return np.random.default_rng(seed).normal(0.2, 1, (6, *shape)).astype(np.float32)


def grouped() -> Case:
    nodes = [node("Conv", ["x", "w", "b"], ["y"], name="conv", group=2, strides=[2, 1], pads=[1, 0, 1, 2])]
    return graph(nodes, {"w": drawn(6, 2, 3, 3), "b": drawn(6, scale=0.2)}, {"x": rows(4, 7, 5)}, {"y": ["n", 6, 4, 5]})


def transposed() -> Case:
    nodes = [
        node(
            "ConvTranspose", ["x", "w", "b"], ["y"], name="up", strides=[2, 2], output_padding=[1, 0], pads=[1, 1, 1, 1]
        )
    ]
    weights = {"w": drawn(4, 3, 3, 3), "b": drawn(3, scale=0.2)}
    return graph(nodes, weights, {"x": rows(4, 5, 5)}, {"y": ["n", 3, 10, 9]})


def turned_gemm() -> Case:
    weights = {"w": drawn(5, 12), "b": drawn(5, scale=0.2)}
    return graph([node("Gemm", ["x", "w", "b"], ["y"], name="fc", transB=1)], weights, {"x": rows(12)}, {"y": ["n", 5]})


def plain_gemm() -> Case:
    nodes = [node("Gemm", ["x", "w", "b"], ["y"], name="fc", alpha=0.5, beta=2.0)]
    return graph(nodes, {"w": drawn(12, 5), "b": drawn(5, scale=0.2)}, {"x": rows(12)}, {"y": ["n", 5]})


def product() -> Case:
    nodes = [node("MatMul", ["x", "w"], ["m"], name="mm"), node("Add", ["m", "b"], ["y"], name="add")]
    return graph(nodes, {"w": drawn(12, 5), "b": drawn(5, scale=0.2)}, {"x": rows(3, 12)}, {"y": ["n", 3, 5]})


def turned_product() -> Case:
    """A weight that a Transpose turns, as exporters leave it."""
    nodes = [node("Transpose", ["w"], ["wt"], name="turn", perm=[1, 0]), node("MatMul", ["x", "wt"], ["y"], name="mm")]
    return graph(nodes, {"w": drawn(5, 12)}, {"x": rows(3, 12)}, {"y": ["n", 3, 5]})


def attention() -> Case:
    """Layer normalization, one head, and what was there before added."""
    names = ("q", "k", "v")
    nodes = [
        node("LayerNormalization", ["x", "g", "b"], ["h"], name="norm", axis=-1),
        *[node("MatMul", ["h", f"w{each}"], [each], name=each) for each in names],
        node("Transpose", ["k"], ["kt"], name="turn", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"], name="scores"),
        node("Mul", ["s", "c"], ["t"], name="scale"),
        node("Softmax", ["t"], ["p"], name="softmax", axis=-1),
        node("MatMul", ["p", "v"], ["o"], name="mix"),
        node("Add", ["o", "x"], ["y"], name="rest"),
    ]
    weights = {f"w{each}": drawn(8, 8, seed=place) for place, each in enumerate(names)}
    weights |= {"g": 1 + drawn(8, scale=0.1), "b": drawn(8, scale=0.1), "c": np.array(8**-0.5, np.float32)}
    return graph(nodes, weights, {"x": rows(5, 8)}, {"y": ["n", 5, 8]})


def embeddings() -> Case:
    nodes = [
        node("Gather", ["table", "ids"], ["e"], name="look"),
        node("ReduceMean", ["e", "axes"], ["m"], name="mean", keepdims=0),
        node("Gemm", ["m", "w", "b"], ["y"], name="fc", transB=1),
    ]
    weights = {"table": drawn(20, 8, scale=1), "axes": np.array([1]), "w": drawn(3, 8), "b": drawn(3, scale=0.2)}
    ids = np.random.default_rng(0).integers(0, 20, (6, 4))
    return graph(nodes, weights, {"ids": ids}, {"y": ["n", 3]}, ids=onnx.TensorProto.INT64)


def shared() -> Case:
    """One weight that two layers multiply with."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="one"),
        node("Tanh", ["a"], ["t"], name="tanh"),
        node("MatMul", ["t", "w"], ["y"], name="two"),
    ]
    return graph(nodes, {"w": drawn(8, 8)}, {"x": rows(8)}, {"y": ["n", 8]})


def several() -> Case:
    """Two inputs and three outputs, of which one is a layer's input too."""
    nodes = [
        node("Gemm", ["a", "w", "b"], ["h"], name="left", transB=1),
        node("Gemm", ["c", "v", "b"], ["k"], name="right", transB=1),
        node("Add", ["h", "k"], ["s"], name="sum"),
        node("Gemm", ["s", "u", "d"], ["y"], name="head", transB=1),
        node("Sigmoid", ["s"], ["z"], name="gate"),
    ]
    weights = {"w": drawn(6, 4), "v": drawn(6, 3), "u": drawn(2, 6), "b": drawn(6, scale=0.1), "d": drawn(2, scale=0.1)}
    return graph(nodes, weights, {"a": rows(4), "c": rows(3)}, {"y": ["n", 2], "z": ["n", 6], "s": ["n", 6]})


CASES: dict[str, Callable[[], Case]] = {
    "Conv in groups": grouped,
    "ConvTranspose": transposed,
    "Gemm, transposed": turned_gemm,
    "Gemm": plain_gemm,
    "MatMul": product,
    "MatMul, transposed": turned_product,
    "attention": attention,
    "embeddings": embeddings,
    "a shared weight": shared,
    "several inputs and outputs": several,
}
GRIDS = {
    "per channel": Grids(),
    "per tensor": Grids(per_channel=False),
    "asymmetric": Grids(asymmetric=True),
    "4 bits": Grids(bits=4, activation_bits=4),
}
ALL = [pytest.param(case(), GRIDS[grids], id=f"{name}, {grids}") for name, case in CASES.items() for grids in GRIDS]


def program_of(model: onnx.ModelProto, scales: Scales = "learned") -> Program:
    return Program(model, latents={}, bounds={}, scales=scales)


def in_torch(program: Program, inputs: Arrays) -> dict[str, Array]:
    program.eval()
    with torch.no_grad():
        found = program({name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: tensor.numpy() for name, tensor in found.items()}


# Sums of at most some dozen float32 products in another order: 2**-24 of their size for each.
CLOSE = 1e-5


@pytest.mark.parametrize(("case", "grids"), ALL)
def test_torch_answers_like_onnxruntime(case: Case, grids: Grids) -> None:
    made = case.quantized(grids)
    expected, found = answers(made, case.inputs), in_torch(program_of(made), case.inputs)
    assert list(found) == [value.name for value in made.graph.output]
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=CLOSE * np.abs(array).max())


@pytest.mark.parametrize("scales", ["fixed", "observed", "learned"])
@pytest.mark.parametrize(("case", "grids"), ALL)
def test_an_untrained_program_written_back_is_its_start(case: Case, grids: Grids, scales: Scales) -> None:
    made = case.quantized(grids)
    assert program_of(made, scales).write().SerializeToString() == made.SerializeToString()


def shake(program: Program, *, seed: int = 0) -> None:
    """Move every parameter by some hundredths: as training would, in no direction."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)


@pytest.mark.parametrize(("case", "grids"), ALL)
def test_a_trained_program_answers_like_the_graph_it_writes(case: Case, grids: Grids) -> None:
    program = program_of(case.quantized(grids))
    shake(program)
    expected, found = answers(program.write(), case.inputs), in_torch(program, case.inputs)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=CLOSE * np.abs(array).max())


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_shapes_types_and_names_of_what_is_stored_stay(grids: Grids) -> None:
    made = attention().quantized(grids)
    program = program_of(made)
    shake(program)
    found, expected = (
        {each.name: (list(each.dims), each.data_type) for each in model.graph.initializer}
        for model in (program.write(), made)
    )
    assert found == expected


def test_everything_that_is_stored_in_float_is_trained_but_single_numbers() -> None:
    program = program_of(attention().quantized(Grids()))
    assert sorted(parameter.numel() for parameter in program.floats.parameters()) == [8, 8]


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_recurrent_layers_are_trained_in_float(kind: str, gates: int) -> None:
    weights = {"w": drawn(1, 4 * gates, 3), "r": drawn(1, 4 * gates, 4, seed=1), "b": drawn(1, 8 * gates, seed=2)}
    own = {"linear_before_reset": 1} if kind == "GRU" else {}  # the form that torch has, and exports
    layer = helper.make_node(kind, ["x", "w", "r", "b"], ["y"], name="recurrent", hidden_size=4, **own)
    program = program_of(small([layer], inputs={"x": [5, "n", 3]}, outputs={"y": [5, 1, "n", 4]}, weights=weights))
    program({"x": torch.from_numpy(drawn(5, 2, 3))})["y"].square().sum().backward()
    assert all(parameter.grad is not None for parameter in program.floats.parameters())
    assert len(program.floats) == 3


def test_a_weight_that_two_layers_read_has_one_float_weight_behind_it() -> None:
    case = shared()
    program = program_of(case.quantized(Grids()))
    found = program({name: torch.from_numpy(array) for name, array in case.inputs.items()})
    found["y"].sum().backward()
    (weight,) = program.weights.children()
    assert next(iter(weight.parameters())).grad is not None


def two_views() -> onnx.ModelProto:
    """Return two layers that read the same integers, each with scales of its own."""
    made = shared().quantized(Grids())
    made.graph.initializer.append(numpy_helper.from_array(np.full(8, 0.01, np.float32), "other"))
    second = node("DequantizeLinear", ["w", "other", "w_z"], ["w_other"], name="w_other", axis=1)
    made.graph.node.insert(0, second)
    for each in made.graph.node:
        if each.name == "two":
            each.input[1] = "w_other"
    return made


def test_integers_that_stand_for_two_weights_stay_as_they_are() -> None:
    made, inputs = two_views(), shared().inputs
    program = program_of(made)
    np.testing.assert_allclose(in_torch(program, inputs)["y"], answers(made, inputs)["y"], atol=1e-5)
    assert not list(program.weights.children())


def test_channels_may_be_counted_from_the_end() -> None:
    case = turned_gemm()
    made = case.quantized(Grids())
    pair = [each for each in made.graph.node if each.name in {"x_q", "x_dq"}]
    for each in pair:
        each.attribute.append(helper.make_attribute("axis", -1))
    for tensor in made.graph.initializer:
        if tensor.name in {"x_s", "x_z"}:
            value = np.repeat(numpy_helper.to_array(tensor), 12)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    program = program_of(made)
    np.testing.assert_allclose(in_torch(program, case.inputs)["y"], answers(made, case.inputs)["y"], atol=1e-5)


def with_stored_bias() -> tuple[onnx.ModelProto, Arrays]:
    """Return a layer whose bias is int32 with the product of the scales before it, as ONNX Runtime's tools store it."""
    case = turned_gemm()
    made = case.quantized(Grids())
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    scale = stored["w_s"] * stored["x_s"]
    tensors = {"b_i": np.rint(stored["b"] / scale).astype(np.int32), "b_s": scale, "b_z": np.zeros(5, np.int32)}
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    made.graph.node.insert(0, node("DequantizeLinear", ["b_i", "b_s", "b_z"], ["b_dq"], name="b_dq", axis=0))
    next(each for each in made.graph.node if each.name == "fc").input[2] = "b_dq"
    return made, case.inputs


def test_biases_stored_as_integers_are_trained_in_float() -> None:
    made, inputs = with_stored_bias()
    program = program_of(biases.in_float(made))
    assert [parameter.numel() for parameter in program.floats.parameters()] == [5]
    np.testing.assert_array_equal(answers(program.write(), inputs)["y"], answers(made, inputs)["y"])


def test_an_operator_that_torch_cannot_train_is_named() -> None:
    strange = graph([node("Sinh", ["x"], ["h"], name="odd"), *_linear("h")], LINEAR, {"x": rows(4)}, {"y": ["n", 2]})
    with pytest.raises(ToolchainFailed, match=r"cannot train the graph's Sinh \('odd'\): take ptq_static"):
        program_of(strange.model)


def test_a_setting_that_torch_cannot_follow_is_named() -> None:
    nodes = [node("MaxPool", ["x"], ["h", "at"], name="pool", kernel_shape=[2]), *_linear("h")]
    strange = graph(nodes, LINEAR, {"x": rows(3, 5)}, {"y": ["n", 3, 2], "at": ["n", 3, 4]}, at=onnx.TensorProto.INT64)
    with pytest.raises(ToolchainFailed, match=r"cannot train the graph's \w+ \('\w+'\)"):
        in_torch(program_of(strange.model), strange.inputs)


def test_a_stored_number_that_torch_cannot_follow_is_named() -> None:
    """Weights in blocks of 4 bits follow from stored numbers alone: they are worked out before there is a row."""
    case = turned_gemm()
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in case.model.graph.initializer}
    made = onnx.ModelProto()
    made.CopyFrom(case.model)
    made.opset_import[0].version, made.ir_version = 21, 10
    made.graph.initializer.append(helper.make_tensor("w4", onnx.TensorProto.INT4, [5, 12], [1] * 60))
    scales = np.full((5, 3), 0.1, np.float32)
    made.graph.initializer.append(numpy_helper.from_array(scales, "s4"))
    made.graph.node.insert(0, node("DequantizeLinear", ["w4", "s4"], ["w_dq"], name="blocks", axis=1, block_size=4))
    made.graph.node[1].input[1] = "w_dq"
    assert set(weights) >= {"w", "b"}
    with pytest.raises(ToolchainFailed, match="cannot train the graph's DequantizeLinear"):
        in_torch(program_of(made), case.inputs)


LINEAR = {"w": drawn(4, 2)}


def _linear(source: str) -> list[onnx.NodeProto]:
    return [node("MatMul", [source, "w"], ["y"], name="mm")]


def test_a_graph_without_weights_has_nothing_to_train() -> None:
    bare = graph([node("Relu", ["x"], ["y"], name="relu")], {}, {"x": rows(4)}, {"y": ["n", 4]})
    with pytest.raises(ToolchainFailed, match="no parameter that could be trained: its graph stores no weights"):
        program_of(bare.model, "fixed")


def test_observed_scales_without_a_place_that_is_rounded_are_noted() -> None:
    recipe = Qat(scales="observed")
    for model, count in ((conv_classifier(), 1), (quantized(conv_classifier(), {"x": graphs.rows(8)}), 0)):
        program = Program(model, latents={}, bounds={}, scales="observed")
        objective = Objective(recipe=recipe, outputs=program.outputs)
        notes = notes_of(Begun(place=0, program=program, objective=objective, sha256=""))
        assert [note.startswith("scales 'observed' changed nothing") for note in notes] == [True] * count
