"""Modules of well-known shapes with random weights: their speed and size are real, their answers mean nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2), with a 1x1 convolution where shapes differ."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, table 1): float32[N, 3, 224, 224] to 1000 logits, 11.7 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        self.blocks = nn.Sequential(
            *(
                block
                for before, after, stride in widths
                for block in (BasicBlock(before, after, stride=stride), BasicBlock(after, after, stride=1))
            )
        )
        self.linear = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project back (Sandler et al. 2018, table 1)."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        expand = [_conv(channels_in, inner, 1), nn.ReLU6()] if expansion != 1 else []
        self.layers = nn.Sequential(
            *expand,
            _conv(inner, inner, 3, stride=stride, groups=inner),
            nn.ReLU6(),
            _conv(inner, channels_out, 1),
        )
        self.added = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.added else y


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, table 2): float32[N, 3, 224, 224] to 1000 logits, 3.5 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        table = [
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ]
        blocks: list[nn.Module] = [_conv(3, 32, 3, stride=2), nn.ReLU6()]
        channels = 32
        for expansion, width, repeats, stride in table:
            for number in range(repeats):
                first = stride if number == 0 else 1
                blocks.append(InvertedResidual(channels, width, stride=first, expansion=expansion))
                channels = width
        self.features = nn.Sequential(*blocks, _conv(channels, 1280, 1), nn.ReLU6())
        self.linear = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


def _conv(channels_in: int, channels_out: int, size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each added and normalized (Devlin et al. 2018)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape

        def split(projected: Tensor) -> Tensor:
            return projected.view(rows, length, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(2, 3) / (width // self.heads) ** 0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, width)
        x = self.norm1(x + self.out(mixed))
        y: Tensor = self.norm2(x + self.down(functional.gelu(self.up(x))))
        return y


class Bert(nn.Module):
    """A BERT of 6 layers, 384 wide: int64[N, 128] token ids to two logits, 22 million parameters."""

    def __init__(self, *, words: int = 30522, width: int = 384, layers: int = 6, length: int = 128) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads=width // 32) for _ in range(layers)))
        self.classify = nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.layers(self.norm(self.words(ids) + self.places))[:, 0])
        return logits


IMAGE = (3, 224, 224)
LENGTH, WORDS = 128, 30522


def write_resnet18(folder: Path, *, rows: int = 64) -> tuple[Path, Path, Path]:
    """Write the model as `.pt2` with a symbolic batch, calibration rows, and evaluation rows without labels."""
    return _write(folder, "resnet18", ResNet18, input_name="x", rows=_pixels(rows))


def write_mobilenetv2(folder: Path, *, rows: int = 64) -> tuple[Path, Path, Path]:
    """Write the model as `write_resnet18` does."""
    return _write(folder, "mobilenetv2", MobileNetV2, input_name="x", rows=_pixels(rows))


def write_bert(folder: Path, *, rows: int = 64) -> tuple[Path, Path, Path]:
    """Write the model as `write_resnet18` does; rows are random token ids."""
    ids = np.random.default_rng(0).integers(0, WORDS, (2 * rows, LENGTH))
    return _write(folder, "bert", Bert, input_name="ids", rows=ids)


def _pixels(rows: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 1, (2 * rows, *IMAGE)).astype(np.float32)


def _write(
    folder: Path, name: str, shape: type[nn.Module], *, input_name: str, rows: npt.NDArray[Any]
) -> tuple[Path, Path, Path]:
    torch.manual_seed(0)
    exported = torch.export.export(
        shape().eval(), (torch.from_numpy(rows[:2]),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    model, calibration, evaluation = (folder / file for file in (f"{name}.pt2", "calibration.npz", "evaluation.npz"))
    torch.export.save(exported, model)
    half = len(rows) // 2
    np.savez(calibration, **{input_name: rows[:half]})  # type: ignore[arg-type]
    np.savez(evaluation, **{input_name: rows[half:]})  # type: ignore[arg-type]
    return model, calibration, evaluation
