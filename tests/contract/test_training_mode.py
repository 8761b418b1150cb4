"""A `.pt2` exported in training mode: the artifact answers as the module does after `eval()`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.domain.errors import UploadRefused
from tests.contract import programs
from tests.contract.programs import Imported, drawn, imported

IMAGE = (torch.zeros(2, 3, 8, 8),)
# Sums of at most some hundred float32 products in another order, through some ten layers.
TOLERANCE = 1e-5


class Normalized(nn.Module):
    """Normalizations of every kind, epsilons of their own, dropout in place and of whole channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.own = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=0.1, momentum=0.3)
        self.plain, self.each = nn.BatchNorm2d(8, affine=False), nn.InstanceNorm2d(8, track_running_stats=True)
        self.dropout, self.channels, self.last = nn.Dropout(0.5, inplace=True), nn.Dropout2d(0.3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.plain(functional.relu(self.own(self.conv(x)))))
        answer: Tensor = self.last(self.channels(self.each(y)).mean((2, 3)))
        return answer


class StochasticDepth(nn.Module):
    """A branch that rows leave out at random (Huang et al. 2016), and a leaky ReLU of random slope."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.RReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.training:
            y = y * torch.empty(y.shape[0], 1, 1, 1).bernoulli_(0.8).div_(0.8)
        answer: Tensor = self.last(x + y)
        return answer


class Remembering(nn.Module):
    """Keeps a moving mean that its answer reads before it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x - self.mean  # type: ignore[operator] # a buffer is a tensor
        self.mean.mul_(0.9).add_(0.1 * x.mean(0))  # type: ignore[operator]
        return answer


class Unscaled(nn.Module):
    """Alpha dropout on one way, channels on another."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.features = nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha(x * 2) + self.features(x)  # type: ignore[no-any-return]


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def spectral() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "residual": (programs.Residual, IMAGE),
    "normalized": (Normalized, IMAGE),
    "shared by two": (programs.SharedByTwo, IMAGE),
    "stochastic depth": (StochasticDepth, IMAGE),
    "perceptron": (perceptron, (torch.zeros(2, 6),)),
    "encoder with attention": (programs.Encoder, (torch.zeros(2, 6, dtype=torch.int64),)),
    "moving mean": (Remembering, (torch.zeros(2, 4),)),
}


def in_training(make: Callable[[], nn.Module], example: tuple[Tensor, ...], folder: Path, **how: bool) -> Imported:
    torch.manual_seed(0)
    return imported(programs.spread(make()), example, folder, training=True, **how)


def answer(
    model: Imported, example: tuple[Tensor, ...], name: str
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rows = drawn(model.signature, example, rows=5, seed=3)
    first: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    first = onnxruntime.InferenceSession(str(model.folder / name)).run(None, rows)[0]
    return first


def evaluated(make: Callable[[], nn.Module], model: Imported, example: tuple[Tensor, ...]) -> Tensor:
    torch.manual_seed(0)
    module = programs.spread(make()).eval()
    rows = drawn(model.signature, example, rows=5, seed=3)
    with torch.no_grad():
        found: Tensor = module(*map(torch.from_numpy, rows.values()))
    return found


@pytest.mark.parametrize("how", [{}, {"decomposed": True}], ids=["as exported", "decomposed"])
@pytest.mark.parametrize("name", CASES)
def test_the_artifact_answers_as_after_eval(name: str, how: dict[str, bool], tmp_path: Path) -> None:
    make, example = CASES[name]
    model = in_training(make, example, tmp_path, **how)
    assert model.was_training
    found, wanted = answer(model, example, model.artifact), evaluated(make, model, example).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_dropout_between_recurrent_layers_is_taken_out(kind: type[nn.LSTM | nn.GRU], tmp_path: Path) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = kind(8, 8, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.cells(x)[0]
            return answer

    example = (torch.zeros(2, 5, 8),)
    model = in_training(Layers, example, tmp_path)
    wanted = evaluated(Layers, model, example).numpy()
    assert model.was_training
    np.testing.assert_allclose(answer(model, example, model.artifact), wanted, rtol=0, atol=TOLERANCE)


def test_a_program_fixed_to_some_rows_is_turned_too(tmp_path: Path) -> None:
    model = in_training(programs.Residual, IMAGE, tmp_path, fixed=True)
    wanted = evaluated(programs.Residual, model, IMAGE).numpy()
    assert model.signature.batched
    np.testing.assert_allclose(answer(model, IMAGE, model.artifact), wanted, rtol=0, atol=TOLERANCE)


def test_a_program_in_evaluation_mode_is_not_said_to_have_been_in_training(tmp_path: Path) -> None:
    assert not imported(programs.Residual(), IMAGE, tmp_path).was_training


def test_alpha_dropout_passes_on_what_it_gets(tmp_path: Path) -> None:
    model = in_training(Unscaled, IMAGE, tmp_path)
    np.testing.assert_array_equal(
        answer(model, IMAGE, model.artifact), 3 * drawn(model.signature, IMAGE, rows=5, seed=3)["x"]
    )


def test_alpha_dropout_that_was_decomposed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UploadRefused, match=r"draws random numbers \(aten.bernoulli\): call module.eval\(\)"):
        in_training(Unscaled, IMAGE, tmp_path, decomposed=True)


@pytest.mark.parametrize("how", [{}, {"decomposed": True}], ids=["as exported", "decomposed"])
def test_a_weight_that_every_run_refines_is_refused_by_name(how: dict[str, bool], tmp_path: Path) -> None:
    with pytest.raises(UploadRefused, match=r"'parametrizations.weight.0._[uv]', and nothing is kept"):
        in_training(spectral, (torch.zeros(2, 4),), tmp_path, **how)


def test_torchao_quantizes_it_as_it_does_what_was_exported_after_eval(tmp_path: Path) -> None:
    found = []
    for mode in (True, False):
        folder = tmp_path / str(mode)
        folder.mkdir()
        torch.manual_seed(0)
        model = imported(programs.spread(programs.Residual()), IMAGE, folder, training=mode)
        model.quantize()
        found.append(answer(model, IMAGE, "out/variant.onnx"))
    np.testing.assert_array_equal(found[0], found[1])
