"""Activation quantizers are read with the levels the graph leaves them, and written back so that they keep them."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.graphs import small
from workers.toolchains.octet.rounding.levels import Levels, levels_of, write_levels
from workers.toolchains.octet.rounding.wiring import Wiring

Floats = NDArray[np.float32]

BOUNDS = {
    "a ReLU6": (0.0, 6.0),
    "16 levels": (-2.0, 1.75),
    "15 levels": (-1.75, 1.75),
    "between levels": (-2.1, 1.65),
    "one end only": (-2.0, 31.75),
    "beyond the type": (-50.0, 1.75),
    "infinite": (-2.0, np.inf),
}


def quantizer(*, kind: type = np.int8, zero: int = 0, clip: tuple[float, float] | None = None) -> onnx.ModelProto:
    """Return x - Clip - Q(scale 0.25) - DQ - y."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dq"),
    ]
    weights: dict[str, NDArray[np.generic]] = {"s": np.array(0.25, np.float32), "z": np.array(zero, kind)}
    if clip is not None:
        weights |= {"low": np.array(clip[0], np.float32), "high": np.array(clip[1], np.float32)}
        nodes.insert(0, helper.make_node("Clip", ["x", "low", "high"], ["c"], name="clip"))
        nodes[1].input[0] = "c"
    return small(nodes, inputs={"x": ["n"]}, outputs={"y": ["n"]}, weights=weights, opset=21)


def only(model: onnx.ModelProto) -> tuple[Wiring, Levels]:
    wiring = Wiring(model.graph)
    (levels,) = levels_of(wiring).values()
    return wiring, levels


def answers(model: onnx.ModelProto, x: Floats) -> Floats:
    found: Floats = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    return found


X = np.linspace(-40, 70, 4001, dtype=np.float32)


@pytest.mark.parametrize(("kind", "ends"), [(np.int8, (-128, 127)), (np.uint8, (0, 255)), (np.uint16, (0, 65535))])
def test_without_a_clip_the_levels_are_those_of_the_type(kind: type, ends: tuple[int, int]) -> None:
    _, levels = only(quantizer(kind=kind))
    assert (levels.qmin, levels.qmax, levels.clip) == (*ends, None)
    assert [node.name for node in levels.dequantizes] == ["dq"]


@pytest.mark.parametrize("what", BOUNDS)
def test_only_a_clip_that_leaves_a_power_of_two_of_levels_counts(what: str) -> None:
    _, levels = only(quantizer(clip=BOUNDS[what]))
    found = (levels.qmin, levels.qmax, levels.clip is not None)
    assert found == ((-8, 7, True) if what == "16 levels" else (-128, 127, False))


def test_levels_are_the_integers_that_come_out() -> None:
    model = quantizer(kind=np.uint8, zero=5, clip=(-1.25, 2.5))
    _, levels = only(model)
    integers = np.rint(answers(model, X) / np.float32(0.25)) + levels.zero_point
    assert (levels.qmin, levels.qmax) == (0, 15)
    np.testing.assert_array_equal(np.unique(integers), np.arange(16))


def test_a_clip_that_others_read_too_is_part_of_the_model() -> None:
    model = quantizer(clip=BOUNDS["16 levels"])
    model.graph.output.append(helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, ["n"]))
    assert only(model)[1].clip is None


@pytest.mark.parametrize(("scale", "zero"), [(0.3, 5), (1e-4, 0), (123.456, 15)])
def test_a_written_scale_moves_the_ends_of_the_clip_along(scale: float, zero: int) -> None:
    model = quantizer(kind=np.uint8, zero=5, clip=(-1.25, 2.5))
    wiring, levels = only(model)
    step = np.float32(scale)
    written = write_levels(wiring, levels, scale=np.array(step), zero_point=np.array(zero, np.int32))
    again = only(model)[1]
    assert (again.qmin, again.qmax, float(again.scale), int(again.zero_point)) == (0, 15, float(step), zero)
    assert written.scale == again.scale
    expected = (np.clip(np.rint(X / step) + zero, 0, 15) - zero).astype(np.float32) * step
    np.testing.assert_array_equal(answers(model, X), expected)


def test_a_scale_that_another_quantizer_shares_is_parted_from_it() -> None:
    model = quantizer()
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q2"], name="q2"),
            helper.make_node("DequantizeLinear", ["q2", "s", "z"], ["y2"], name="dq2"),
        ]
    )
    wiring = Wiring(model.graph)
    write_levels(wiring, levels_of(wiring)["q"], scale=np.array(0.5, np.float32), zero_point=np.array(3, np.int32))
    found = {name: (float(each.scale), int(each.zero_point)) for name, each in levels_of(Wiring(model.graph)).items()}
    assert found == {"q": (0.5, 3), "q2": (0.25, 0)}
    assert [list(node.input)[1:] == ["s", "z"] for node in model.graph.node] == [False, False, True, True]


def test_a_scale_per_channel_stays_one() -> None:
    model = quantizer()
    for name, array in (("s", np.full(3, 0.25, np.float32)), ("z", np.zeros(3, np.int8))):
        tensor = next(each for each in model.graph.initializer if each.name == name)
        tensor.CopyFrom(numpy_helper.from_array(array, name))
    wiring, levels = only(model)
    write_levels(wiring, levels, scale=np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(only(model)[1].scale, [1, 2, 3])


@pytest.mark.parametrize(("scale", "zero"), [(0.0, 0), (-1.0, 0), (float("nan"), 0), (1.0, 16)])
def test_what_is_no_scale_or_zero_point_is_refused(scale: float, zero: int) -> None:
    wiring, levels = only(quantizer(kind=np.uint8, clip=(0.0, 3.75)))
    with pytest.raises(ValueError, match="q was given a"):
        write_levels(wiring, levels, scale=np.array(scale, np.float32), zero_point=np.array(zero, np.int32))


def test_a_quantizer_whose_integers_others_take_is_left_out() -> None:
    model = quantizer()
    model.graph.node.append(helper.make_node("Cast", ["q"], ["as_float"], name="cast", to=onnx.TensorProto.FLOAT))
    assert levels_of(Wiring(model.graph)) == {}
