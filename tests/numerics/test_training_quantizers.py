"""Fake quantizers round like the engine, let gradients pass inside their grid, and move their scales by the rules."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from tests.graphs import conv_classifier, drawn, rows, small
from tests.quantized import Grids, answers, quantized
from workers.toolchains.octet.rounding.levels import levels_of
from workers.toolchains.octet.rounding.wiring import Wiring
from workers.training.latents import latents_of, stored_weights
from workers.training.program import Program
from workers.training.quantizers import MOMENTUM, ActivationQuantizer, Grid, Scales, WeightQuantizer


def grid(scale: float | list[float] = 0.25, zero: int = 0, *, qmin: int = -8, qmax: int = 7, axis: Any = None) -> Grid:
    steps = torch.tensor(scale)
    return Grid(
        scale=steps, zero_point=torch.full(steps.shape, zero, dtype=torch.int32), qmin=qmin, qmax=qmax, axis=axis
    )


def gradients(quantizer: ActivationQuantizer, x: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of what goes in and of the factor, where `passed` is that of what comes out."""
    x = x.clone().requires_grad_()
    quantizer(x).backward(passed)
    assert x.grad is not None
    scale = quantizer.factor.grad if quantizer.factor is not None else None
    return x.grad, scale if scale is not None else torch.zeros(0)


X = torch.linspace(-4, 4, 640).reshape(4, 160) + 1e-4  # on the edge of no two steps
PASSED = torch.randn(4, 160, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("zero", [0, 3, -8])
@pytest.mark.parametrize("scales", ["fixed", "learned"])
def test_a_quantizer_gives_what_onnxruntime_gives(scales: Scales, zero: int) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dq"),
    ]
    weights = {"s": np.array(0.013, np.float32), "z": np.array(zero, np.int8)}
    model = small(nodes, inputs={"x": ["n", 160]}, outputs={"y": ["n", 160]}, weights=weights)
    found = ActivationQuantizer(grid(0.013, zero, qmin=-128, qmax=127), scales=scales)(X)
    np.testing.assert_array_equal(found.detach().numpy(), answers(model, {"x": X.numpy()})["y"])


@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("scales", ["fixed", "observed", "learned"])
def test_gradients_pass_inside_the_grid_and_nowhere_else(scales: Scales, zero: int) -> None:
    quantizer = ActivationQuantizer(grid(zero=zero), scales=scales).eval()
    found, _ = gradients(quantizer, X, PASSED)
    nearest = torch.round(X / 0.25) + zero
    np.testing.assert_array_equal(found, torch.where((nearest >= -8) & (nearest <= 7), PASSED, 0))


def by_the_paper(x: Tensor, scale: Tensor, zero: int) -> Tensor:
    """Return the derivative of the quantized value by the scale: LSQ, equation 3, with a zero point."""
    exact = x / scale
    nearest = torch.round(exact)
    inside = (nearest + zero >= -8) & (nearest + zero <= 7)
    return torch.where(inside, nearest - exact, torch.where(nearest + zero < -8, -8.0 - zero, 7.0 - zero))


@pytest.mark.parametrize("zero", [0, 3])
def test_the_gradient_of_a_scale_is_that_of_lsq(zero: int) -> None:
    _, found = gradients(ActivationQuantizer(grid(zero=zero), scales="learned"), X, PASSED)
    scale = torch.tensor(0.25)
    strength = (160 * 7) ** -0.5  # 1 / sqrt(n * qmax), of the 160 numbers of a row
    expected = scale * strength * (PASSED.double() * by_the_paper(X, scale, zero)).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_a_weight_s_scale_moves_its_whole_value_and_no_integer() -> None:
    steps = [0.1, 0.25, 0.4, 0.05]
    quantizer = WeightQuantizer(X.clone(), grid(steps, axis=0), scales="learned")
    integers = quantizer.integers()
    quantizer().backward(PASSED)
    assert quantizer.factor is not None
    assert quantizer.factor.grad is not None
    expected = (PASSED.double() * integers * torch.tensor(steps).reshape(-1, 1)).sum(1)
    np.testing.assert_allclose(quantizer.factor.grad.numpy(), expected.numpy(), rtol=1e-4)
    with torch.no_grad():
        quantizer.factor.mul_(1.5)
    assert torch.equal(quantizer.integers(), integers)
    torch.testing.assert_close(quantizer(), integers * 1.5 * torch.tensor(steps).reshape(-1, 1))


def test_half_a_batch_counts_like_a_whole_one() -> None:
    """Two processes take the mean of their gradients, and each has half of the rows: loss and scale are the same."""
    whole = gradients(ActivationQuantizer(grid(), scales="learned"), X, PASSED)[1]
    halves = [
        gradients(ActivationQuantizer(grid(), scales="learned"), X[mine], PASSED[mine])[1]
        for mine in (slice(0, 2), slice(2, 4))
    ]
    assert float(sum(halves)) == pytest.approx(float(whole), rel=1e-4)


def test_a_scale_stays_above_zero_wherever_training_takes_it() -> None:
    quantizer = WeightQuantizer(X.clone(), grid(), scales="learned")
    assert quantizer.factor is not None
    with torch.no_grad():
        quantizer.factor.fill_(-3)
    assert float(quantizer.scale.detach()) > 0
    assert bool(torch.isfinite(quantizer()).all())


@pytest.mark.parametrize(("scales", "learned"), [("fixed", 0), ("observed", 0), ("learned", 1)])
def test_scales_are_parameters_only_where_they_are_learned(scales: Scales, learned: int) -> None:
    assert len(list(ActivationQuantizer(grid(), scales=scales).parameters())) == learned


def observed(quantizer: ActivationQuantizer, x: Tensor, times: int = 1) -> tuple[float, int]:
    quantizer.train()
    for _ in range(times):
        quantizer(x)
    return float(quantizer.scale), int(quantizer.zero_point)


def test_an_observed_scale_follows_the_extremes_of_a_batch() -> None:
    found, zero = observed(ActivationQuantizer(grid(), scales="observed"), torch.tensor([[-1.0, 4.0]]))
    expected = (7 * 0.25 * (1 - MOMENTUM) + 4 * MOMENTUM) / 7
    reach = max(expected, (8 * 0.25 * (1 - MOMENTUM) + 1 * MOMENTUM) / 8)
    assert found == pytest.approx(reach)
    assert zero == 0


def test_an_observed_scale_ends_at_the_extremes() -> None:
    found, zero = observed(ActivationQuantizer(grid(), scales="observed"), torch.tensor([[-1.0, 3.5]]), 2000)
    assert found == pytest.approx(0.5, rel=1e-4)
    assert zero == 0


def test_an_observed_zero_point_stays_on_the_grid() -> None:
    quantizer = ActivationQuantizer(grid(0.1, 5, qmin=0, qmax=15), scales="observed")
    found, zero = observed(quantizer, torch.tensor([[-2.0, 1.0]]), 2000)
    assert found == pytest.approx(0.2, rel=1e-4)
    assert zero == 10
    assert observed(quantizer, torch.tensor([[2.0, 3.0]]), 2000)[1] == 0


def test_a_grid_without_values_below_zero_does_not_follow_them() -> None:
    quantizer = ActivationQuantizer(grid(0.2, 0, qmin=0, qmax=15), scales="observed")
    found, zero = observed(quantizer, torch.tensor([[-2.0, 3.0]]), 2000)
    assert found == pytest.approx(0.2, rel=1e-4)
    assert zero == 0


@pytest.mark.parametrize("still", ["frozen", "not training", "fixed"])
def test_an_observed_scale_stands_still(still: str) -> None:
    quantizer = ActivationQuantizer(grid(), scales="fixed" if still == "fixed" else "observed")
    quantizer.frozen = still == "frozen"
    quantizer.train(still != "not training")
    quantizer(X * 100)
    assert float(quantizer.scale) == 0.25


def test_values_that_are_all_zero_leave_a_scale_above_zero() -> None:
    quantizer = ActivationQuantizer(grid(0.1, 5, qmin=0, qmax=15), scales="observed")
    found, _ = observed(quantizer, torch.zeros(1, 8), 20_000)
    assert found > 0


@pytest.mark.parametrize("axis", [None, 0, -2])
def test_a_quantizer_that_only_cuts_ends_where_its_grid_does(axis: int | None) -> None:
    steps: float | list[float] = 0.25 if axis is None else [0.1, 0.25, 0.4, 0.05]
    quantizer = ActivationQuantizer(grid(steps, axis=axis), scales="learned")
    quantizer.rounds = False
    scale = torch.tensor(steps).reshape(-1, 1)
    np.testing.assert_array_equal(quantizer(X), torch.minimum(torch.maximum(X, -8 * scale), 7 * scale))


CALIBRATION = {"x": rows(16)}
NARROW = {8: (0, -1), 4: (-8, 7), 2: (-2, 1)}


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("per_channel", [True, False])
def test_latents_begin_where_rounding_gives_the_integers_of_the_start(bits: int, per_channel: bool) -> None:  # noqa: FBT001
    float32 = conv_classifier()
    start = quantized(float32, CALIBRATION, Grids(bits=bits, per_channel=per_channel))
    latents, _ = latents_of(start, float32, narrow=NARROW[bits], wide_layers=())
    wiring = Wiring(start.graph)
    assert len(latents) == 3
    for name, stored in stored_weights(wiring).items():
        integers = numpy_helper.to_array(wiring.initializers[name])
        quantizer = WeightQuantizer(
            torch.from_numpy(latents[name]), stored.grid(wiring, *stored.bounds), scales="learned"
        )
        np.testing.assert_array_equal(quantizer.integers().numpy(), integers)


def test_latents_are_the_float_weights_where_nothing_was_cut_off() -> None:
    float32 = conv_classifier()
    latents, _ = latents_of(quantized(float32, CALIBRATION), float32, narrow=NARROW[8], wide_layers=())
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in float32.graph.initializer}
    for name, latent in latents.items():
        # half a step at most, and what keeps a value off the edge
        step = np.abs(known[name]).max(axis=tuple(range(1, latent.ndim)), keepdims=True) / 127
        assert (np.abs(latent - known[name]) <= 0.011 * step).all()
        assert (latent == known[name]).mean() > 0.9


def wild(model: onnx.ModelProto, narrow: tuple[int, int], *, wide: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Return a graph whose weights and scales were moved about as no sane training would."""
    latents, bounds = latents_of(model, conv_classifier(), narrow=narrow, wide_layers=wide)
    program = Program(model, latents=latents, bounds=bounds, scales="learned")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=2)
    return program.write()


def reaches(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    return {name: (int(stored[name].min()), int(stored[name].max())) for name in ("w1", "w2", "w3")}


@pytest.mark.parametrize("bits", [4, 2])
def test_a_narrow_grid_never_leaves_its_bounds(bits: int) -> None:
    start = quantized(conv_classifier(), CALIBRATION, Grids(bits=bits))
    assert set(reaches(wild(start, NARROW[bits])).values()) == {NARROW[bits]}


def test_layers_that_keep_8_bits_use_them() -> None:
    start = quantized(conv_classifier(), CALIBRATION, Grids(bits=4))
    found = reaches(wild(start, NARROW[4], wide=("conv2",)))
    assert (found["w1"], found["w2"], found["w3"]) == ((-8, 7), (-128, 127), (-8, 7))


@pytest.mark.parametrize("asymmetric", [True, False])
def test_narrow_activations_keep_the_bounds_that_their_scale_gives(asymmetric: bool) -> None:  # noqa: FBT001
    start = quantized(conv_classifier(), CALIBRATION, Grids(activation_bits=4, asymmetric=asymmetric))
    made = wild(start, NARROW[8])
    before, after = (levels_of(Wiring(model.graph)) for model in (start, made))
    assert len(after) == 3
    for name, levels in after.items():
        assert levels.clip is not None
        assert (levels.qmin, levels.qmax) == (before[name].qmin, before[name].qmax)
        assert levels.qmax - levels.qmin == 15
        assert levels.scale != before[name].scale


def test_weights_with_a_zero_point_are_trained_on_their_own_grid() -> None:
    stored = {"w": np.array([[0, 40, 255], [3, 200, 90]], np.uint8), "s": np.array([0.1, 0.3], np.float32)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["w_dq"], name="dq", axis=0),
        helper.make_node("Gemm", ["x", "w_dq"], ["y"], name="fc", transB=1),
    ]
    weights = {**stored, "z": np.array([40, 90], np.uint8)}
    model = small(nodes, inputs={"x": ["n", 3]}, outputs={"y": ["n", 2]}, weights=weights)
    program = Program(model, latents={}, bounds={}, scales="learned")
    assert program.write().SerializeToString() == model.SerializeToString()
    x = drawn(4, 3)
    np.testing.assert_allclose(program({"x": torch.from_numpy(x)})["y"].detach(), answers(model, {"x": x})["y"], 1e-5)
