"""CIFAR ResNet-20: the architecture, its preprocessing and its export, for a real model with published weights.

    python -m examples.resnet20 FOLDER [WEIGHTS.safetensors]

writes `resnet20.pt2` (symbolic batch), `resnet20-batch1.pt2` (batch fixed to 1) and `resnet20.onnx` into FOLDER.
Without WEIGHTS the numbers are random.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (He et al. 2016, section 4.2, option A)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.added_channels = channels_out - channels_in
        stride = 2 if self.added_channels else 1
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Take every second pixel and put zero channels on both sides, where the block changes the shape."""
        if not self.added_channels:
            return x
        side = self.added_channels // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))


class ResNet20(nn.Module):
    """float32[N, 3, 32, 32], normalized, to the logits of the ten CIFAR classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def build(*, seed: int = 0) -> ResNet20:
    """Return the module with random weights, ready to answer."""
    torch.manual_seed(seed)
    return ResNet20().eval()


def load(weights: Path) -> ResNet20:
    """Return the module with these weights, keys as the attributes here are called; ready to answer."""
    module = ResNet20()
    module.load_state_dict(load_file(weights))
    return module.eval()


def preprocess(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Turn uint8[N, 32, 32, 3] in RGB into the module's input, float32[N, 3, 32, 32]."""
    normalized = (images / 255 - np.array(MEAN)) / np.array(STD)
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2), dtype=np.float32)


def export_pt2(module: nn.Module, path: Path, *, dynamic: bool) -> None:
    """Write what `torch.export` makes: with a symbolic batch axis, or with the batch fixed to 1."""
    torch.export.save(_exported(module, dynamic=dynamic), path)


def export_onnx(module: nn.Module, path: Path) -> None:
    """Write ONNX with a symbolic batch axis, weights inside."""
    program = torch.onnx.export(_exported(module, dynamic=True), dynamo=True, verbose=False)
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program.")
    program.save(path, external_data=False)


def _exported(module: nn.Module, *, dynamic: bool) -> torch.export.ExportedProgram:
    if not dynamic:
        return torch.export.export(module, (torch.zeros(1, 3, 32, 32),))
    shapes = {"x": {0: torch.export.Dim("batch")}}
    return torch.export.export(module, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=shapes)


def main(folder: Path, weights: Path | None) -> None:
    """Write all three files into `folder`."""
    module = load(weights) if weights else build()
    export_pt2(module, folder / "resnet20.pt2", dynamic=True)
    export_pt2(module, folder / "resnet20-batch1.pt2", dynamic=False)
    export_onnx(module, folder / "resnet20.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)  # noqa: PLR2004 - the optional argument
