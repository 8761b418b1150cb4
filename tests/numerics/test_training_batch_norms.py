"""Statistics of folded batch normalizations change nothing at first, follow the batches, and are folded for good."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from app.domain.recipes import Qat
from tests.graphs import drawn, rows, small
from tests.quantized import Arrays, answers, quantized
from workers.toolchains.prepare import prepare
from workers.training.batch_norms import MOMENTUM, Norm, Statistics, norms_of
from workers.training.latents import latents_of
from workers.training.program import Program

INPUTS: Arrays = {"x": rows(32)}


def uploaded() -> onnx.ModelProto:
    """Return a convolution with a batch normalization, one without, and a layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "g", "b", "m", "v"], ["n1"], name="bn"),
        helper.make_node("Relu", ["n1"], ["r1"], name="relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2"),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="fc", transB=1),
    ]
    x = torch.nn.functional.conv2d(torch.from_numpy(INPUTS["x"]), torch.from_numpy(drawn(8, 3, 3, 3)), padding=1)
    weights = {
        "w1": drawn(8, 3, 3, 3),
        "g": np.array([1, -0.5, 2, 0.3, 1, 1, 0.7, 1.5], np.float32),
        "b": drawn(8, scale=0.5, seed=1),
        "m": x.mean((0, 2, 3)).numpy(),
        "v": x.var((0, 2, 3)).numpy(),
        "w2": drawn(6, 8, 3, 3),
        "b2": drawn(6, scale=0.1),
        "w3": drawn(4, 6),
        "b3": drawn(4, scale=0.1),
    }
    return small(nodes, inputs={"x": ["n", 3, 8, 8]}, outputs={"y": ["n", 4]}, weights=weights)


@pytest.fixture(scope="module")
def start() -> onnx.ModelProto:
    return quantized(prepare(uploaded(), Qat().starts[0]), INPUTS)


def program_of(start: onnx.ModelProto) -> Program:
    latents, _ = latents_of(start, prepare(uploaded(), Qat().starts[0]), narrow=(0, -1), wide_layers=())
    return Program(start, latents=latents, bounds={}, scales="learned", norms=norms_of(uploaded()))


def followed(start: onnx.ModelProto, inputs: Arrays, *, steps: int = 5) -> Program:
    program = program_of(start).train()
    for _ in range(steps):
        program({name: torch.from_numpy(array) for name, array in inputs.items()})
    return program.eval()


def in_torch(program: Program, inputs: Arrays) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with torch.no_grad():
        found = program({name: torch.from_numpy(array) for name, array in inputs.items()})["y"]
    return np.asarray(found.numpy(), np.float32)


def test_the_normalization_behind_a_convolution_is_found() -> None:
    found = norms_of(uploaded())
    assert list(found) == ["conv1"]
    np.testing.assert_array_equal(found["conv1"].scale[:2], [1, 0.5])


def test_at_first_they_change_nothing(start: onnx.ModelProto) -> None:
    program = program_of(start)
    assert len(list(program.norms.children())) == 1
    assert program.write().SerializeToString() == start.SerializeToString()
    np.testing.assert_allclose(in_torch(program.eval(), INPUTS), answers(start, INPUTS)["y"], atol=1e-5)


def test_what_moved_is_folded_into_the_graph(start: onnx.ModelProto) -> None:
    moved = {"x": 2 * rows(32, seed=4) + 1}
    program = followed(start, moved)
    (statistics,) = program.norms.children()
    assert isinstance(statistics, Statistics)
    assert float((statistics.factor - 1).abs().max()) > 0.05
    written = program.write()
    # a value at the edge of two steps may fall to either: one of 255 steps in one of 36 places that are averaged
    np.testing.assert_allclose(in_torch(program, moved), answers(written, moved)["y"], atol=1e-3)
    assert written.SerializeToString() != start.SerializeToString()


def test_frozen_they_stand_still(start: onnx.ModelProto) -> None:
    program = program_of(start).train()
    program.freeze(observers=True, batch_norm=True)
    program({"x": torch.from_numpy(INPUTS["x"] * 9)})
    assert program.write().SerializeToString() == start.SerializeToString()


def test_they_follow_the_batches_as_a_batch_normalization_does() -> None:
    statistics = Statistics(Norm(scale=np.ones(3, np.float32), shift=np.zeros(3, np.float32))).train()
    reference = torch.nn.BatchNorm2d(3, eps=1e-9, momentum=MOMENTUM)
    x = 3 * torch.randn(64, 3, 5, 5, generator=torch.Generator().manual_seed(0)) + 2
    for _ in range(3):
        statistics(x)
        reference(x)
    assert reference.running_mean is not None
    assert reference.running_var is not None
    np.testing.assert_allclose(statistics.mean, reference.running_mean, rtol=1e-5)
    # torch takes the unbiased variance: n / (n - 1) of it, over 1,600 values a channel
    np.testing.assert_allclose(statistics.deviation.square(), reference.running_var, rtol=1 / 1599)


def test_they_bring_a_channel_back_to_its_mean_and_deviation() -> None:
    statistics = Statistics(Norm(scale=np.array([2.0], np.float32), shift=np.array([1.0], np.float32))).train()
    x = 7 * torch.randn(256, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 3
    for _ in range(200):
        found = statistics(x)
    assert float(found.mean()) == pytest.approx(1, abs=1e-3)
    assert float(found.std()) == pytest.approx(2, rel=1e-3)


def test_no_gradient_passes_through_them() -> None:
    statistics = Statistics(Norm(scale=np.ones(3, np.float32), shift=np.zeros(3, np.float32))).train()
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    statistics(x).sum().backward()
    assert x.grad is not None
    expected = statistics.factor.reshape(1, 3, 1, 1).expand_as(x)
    np.testing.assert_array_equal(x.grad, expected)


def test_a_channel_that_is_always_the_same_stays_finite() -> None:
    statistics = Statistics(Norm(scale=np.zeros(2, np.float32), shift=np.zeros(2, np.float32))).train()
    for _ in range(100):
        found = statistics(torch.zeros(4, 2, 3, 3))
    assert bool(torch.isfinite(found).all())
