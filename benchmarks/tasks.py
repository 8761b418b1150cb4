"""Small models of many kinds, trained on the spot in seconds on real digits and made-up signals: their answers mean
something, which random weights cannot offer, and none of them is a model that Octet was tuned on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SIDE = 32
CLASSES = 10
CALIBRATION_ROWS = 500
BATCH = 64
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One model and its rows.

    Attributes:
        inputs: by the forward method's parameter names, rows first.
        labels: what `loss` teaches and what scores.
        metric: what a budget is set on.
        epochs: enough to be good, not more.
    """

    module: nn.Module
    inputs: Arrays
    labels: npt.NDArray[Any]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: str
    epochs: int


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Mix the channels of groups, as ShuffleNet does (Zhang et al. 2018, section 3.1)."""
    rows, channels, height, width = x.shape
    return (
        x.view(rows, groups, channels // groups, height, width).transpose(1, 2).reshape(rows, channels, height, width)
    )


class ShuffleBlock(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, added."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, channels, 1, groups=groups, bias=False), nn.BatchNorm2d(channels)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False), nn.BatchNorm2d(channels)
        )
        self.expand = nn.Sequential(
            nn.Conv2d(channels, channels, 1, groups=groups, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = shuffle(functional.relu(self.reduce(x)), self.groups)
        return functional.relu(x + self.expand(self.depthwise(y)))


class ShuffleNet(nn.Module):
    """Depthwise and grouped convolutions with channel shuffle: float32[N, 1, 32, 32] to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 48, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU6())
        self.blocks = nn.Sequential(*(ShuffleBlock(48, 3) for _ in range(6)))
        self.linear = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class Segmenter(nn.Module):
    """A small U-Net (Ronneberger et al. 2015): float32[N, 1, 32, 32] to two scores per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _convs(1, 24), _convs(24, 48)
        self.middle = _convs(48, 64)
        self.up = nn.ConvTranspose2d(64, 48, 2, stride=2)
        self.mix1, self.mix2 = _convs(96, 48), _convs(72, 24)
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        y = self.up(self.middle(functional.max_pool2d(two, 2)))
        y = self.mix1(torch.cat([y, two], 1))
        y = functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        scores: Tensor = self.head(self.mix2(torch.cat([y, one], 1)))
        return scores


def _convs(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.SiLU()
    )


class Denoiser(nn.Module):
    """Predicts the noise and takes it away (Zhang et al. 2017): float32[N, 1, 32, 32] to the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            *(_convs(32, 32) for _ in range(4)),
            nn.Conv2d(32, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        clean: Tensor = x - self.layers(x)
        return clean


class Upscaler(nn.Module):
    """Four times the pixels through depth to space (Shi et al. 2016): float32[N, 1, 16, 16] to [N, 1, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 48, 5, padding=2), nn.Tanh(), nn.Conv2d(48, 32, 3, padding=1), nn.Tanh(),
            nn.Conv2d(32, 4, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        large: Tensor = self.layers(x)
        return large


class KeywordSpotter(nn.Module):
    """One-dimensional depthwise-separable convolutions: float32[N, 1, 2000] to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(1, 64, 16, stride=4), nn.BatchNorm1d(64), nn.Hardswish()]
        for _ in range(4):
            layers += [
                nn.Conv1d(64, 64, 9, stride=2, padding=4, groups=64, bias=False),
                nn.Conv1d(64, 64, 1, bias=False),
                nn.BatchNorm1d(64),
                nn.Hardswish(),
            ]
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.layers(x).mean(2))
        return logits


class Recommender(nn.Module):
    """Embeddings of a user and an item through a perceptron (He et al. 2017): int64[N], int64[N] to float32[N, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(300, 32), nn.Embedding(200, 32)
        self.layers = nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1)
        )  # fmt: skip

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        rating: Tensor = self.layers(torch.cat([self.users(user), self.items(item)], 1))
        return rating


class Reader(nn.Module):
    """Reads a digit line by line: float32[N, 32, 32] through an LSTM to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, 96, batch_first=True)
        self.linear = nn.Linear(96, CLASSES)

    def forward(self, lines: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.lstm(lines)[0][:, -1])
        return logits


class Attender(nn.Module):
    """Two layers of self-attention over the lines of a digit: float32[N, 32, 32] to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(SIDE, 96)
        self.places = nn.Parameter(torch.randn(SIDE, 96) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(96, 4, 192, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.linear = nn.Linear(96, CLASSES)

    def forward(self, lines: Tensor) -> Tensor:
        y = self.enter(lines) + self.places
        for layer in self.layers:
            y = layer(y)
        logits: Tensor = self.linear(y.mean(1))
        return logits


def _digits(side: int = SIDE) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return real handwritten digits, float32[1797, 1, side, side] in 0..1, and their classes."""
    bunch = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)
    larger = functional.interpolate(images, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return larger.numpy(), bunch.target.astype(np.int64)


def _classify(module: nn.Module, name: str, rows: npt.NDArray[np.float32], *, epochs: int) -> Task:
    _, labels = _digits()
    return Task(
        module=module, inputs={name: rows}, labels=labels, loss=functional.cross_entropy, metric="top1", epochs=epochs
    )


def shufflenet() -> Task:
    return _classify(ShuffleNet(), "x", (_digits()[0] - 0.3) / 0.38, epochs=8)


def segmenter() -> Task:
    """Find the ink under heavy noise."""
    images, _ = _digits()
    noisy = images + np.random.default_rng(1).normal(0, 0.5, images.shape).astype(np.float32)
    ink = (images[:, 0] > 0.5).astype(np.int64)  # noqa: PLR2004
    return Task(
        module=Segmenter(), inputs={"x": noisy}, labels=ink, loss=functional.cross_entropy, metric="miou", epochs=3
    )


def denoiser() -> Task:
    images, _ = _digits()
    noisy = images + np.random.default_rng(2).normal(0, 0.2, images.shape).astype(np.float32)
    return Task(
        module=Denoiser(), inputs={"x": noisy}, labels=images, loss=functional.mse_loss, metric="psnr", epochs=4
    )


def upscaler() -> Task:
    return Task(
        module=Upscaler(),
        inputs={"x": _digits(16)[0]},
        labels=_digits(32)[0],
        loss=functional.mse_loss,
        metric="psnr",
        epochs=12,
    )


def keywords() -> Task:
    """Tell ten rising or falling tones apart, in noise."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, CLASSES, 1800)
    time = np.linspace(0, 1, 2000)
    pitch = 20 + 15 * (labels % 5)[:, None] + 60 * time * np.where(labels < CLASSES // 2, 1, -0.3)[:, None]
    waves = np.sin(2 * np.pi * pitch * time + generator.uniform(0, 6, (1800, 1)))
    heard = waves * generator.uniform(0.2, 1, (1800, 1)) + generator.normal(0, 0.5, waves.shape)
    return Task(
        module=KeywordSpotter(),
        inputs={"x": heard[:, None].astype(np.float32)},
        labels=labels.astype(np.int64),
        loss=functional.cross_entropy,
        metric="top1",
        epochs=8,
    )


def recommender() -> Task:
    """Predict ratings that follow from eight hidden tastes."""
    generator = np.random.default_rng(4)
    users, items = generator.integers(0, 300, 20_000), generator.integers(0, 200, 20_000)
    tastes, offers = generator.normal(0, 0.6, (300, 8)), generator.normal(0, 0.6, (200, 8))
    ratings = 3 + (tastes[users] * offers[items]).sum(1) + generator.normal(0, 0.2, len(users))
    return Task(
        module=Recommender(),
        inputs={"user": users.astype(np.int64), "item": items.astype(np.int64)},
        labels=ratings.astype(np.float32)[:, None],
        loss=functional.mse_loss,
        metric="mae",
        epochs=15,
    )


def reader() -> Task:
    return _classify(Reader(), "lines", _digits()[0][:, 0], epochs=10)


def attender() -> Task:
    return _classify(Attender(), "lines", _digits()[0][:, 0], epochs=10)


TASKS: dict[str, Callable[[], Task]] = {
    "shufflenet": shufflenet,
    "segmenter": segmenter,
    "denoiser": denoiser,
    "upscaler": upscaler,
    "keywords": keywords,
    "recommender": recommender,
    "reader": reader,
    "attender": attender,
}


def write(task: Task, folder: Path) -> tuple[Path, Path, Path]:
    """Train a task's model, and write it as ONNX beside its calibration and evaluation rows, both labelled."""
    train, calibration, evaluation = _parts(len(task.labels))
    _train(task, train)
    inputs = {name: torch.from_numpy(array[:2]) for name, array in task.inputs.items()}
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        task.module.eval(), tuple(inputs.values()), dynamic_shapes=tuple({0: batch} for _ in inputs)
    )
    path = folder / "model.pt2"
    torch.export.save(program, path)
    for name, rows in (("calibration", calibration), ("evaluation", evaluation)):
        arrays = {input_name: array[rows] for input_name, array in task.inputs.items()}
        np.savez(folder / f"{name}.npz", labels=task.labels[rows], **arrays)  # type: ignore[arg-type]
    return path, folder / "calibration.npz", folder / "evaluation.npz"


def _parts(rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    order = np.random.default_rng(0).permutation(rows)
    held = min(rows // 3, 2000)
    rest = order[: rows - held]
    return rest, rest[:CALIBRATION_ROWS], order[rows - held :]


def _train(task: Task, rows: npt.NDArray[np.int64]) -> None:
    optimizer = torch.optim.Adam(task.module.parameters(), 3e-3)
    task.module.train()
    for inputs, labels in _batches(task, rows):
        optimizer.zero_grad()
        loss: Any = task.loss(task.module(*inputs), labels)
        loss.backward()
        optimizer.step()


def _batches(task: Task, rows: npt.NDArray[np.int64]) -> Iterator[tuple[list[Tensor], Tensor]]:
    generator = np.random.default_rng(5)
    for _ in range(task.epochs):
        order = generator.permutation(rows)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            yield (
                [torch.from_numpy(array[chosen]) for array in task.inputs.values()],
                torch.from_numpy(task.labels[chosen]),
            )
