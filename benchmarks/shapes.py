"""Modules of well-known shapes with random weights: their speed and size are real, their answers mean nothing."""

from pathlib import Path

import numpy as np
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


def write_resnet18(folder: Path, *, rows: int = 64) -> tuple[Path, Path, Path]:
    """Write the model as `.pt2` with a symbolic batch, calibration rows, and evaluation rows without labels."""
    torch.manual_seed(0)
    example = (torch.randn(2, 3, 224, 224),)
    exported = torch.export.export(ResNet18().eval(), example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(exported, folder / "resnet18.pt2")
    generator = np.random.default_rng(0)
    for name in ("calibration", "evaluation"):
        np.savez(folder / f"{name}.npz", x=generator.normal(0, 1, (rows, 3, 224, 224)).astype(np.float32))
    return folder / "resnet18.pt2", folder / "calibration.npz", folder / "evaluation.npz"
