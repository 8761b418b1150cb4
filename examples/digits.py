"""Train a small CNN on scikit-learn's digits and write what Octet needs: the model and two datasets.

    python examples/digits.py FOLDER

FOLDER gets `digits.pt2` (torch.export, symbolic batch), `calibration.npz` (rows the model was trained on) and
`evaluation.npz` (rows it has never seen, with labels).
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

SEED = 0
CALIBRATION_ROWS = 300


class Rows(NamedTuple):
    """Images as float32[rows, 1, 16, 16] in 0 to 1, and their labels."""

    x: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


class DigitsNet(nn.Module):
    """Three convolutions and a linear layer: float32[N, 1, 16, 16] to the logits of the ten digits."""

    def __init__(self, *, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.linear = nn.Linear(4 * width * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x))
        x = functional.relu(self.conv2(x))
        x = functional.avg_pool2d(functional.relu(self.conv3(x)), 2)
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def load() -> tuple[Rows, Rows]:
    """Return the training rows and the evaluation rows: two thirds and one third of the 1797 digits."""
    digits = load_digits()
    pixels = (digits.images / 16).astype(np.float32)[:, None]
    x = pixels.repeat(2, axis=2).repeat(2, axis=3)  # 8x8 pixels, each drawn twice as large
    labels = digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(x, labels, test_size=1 / 3, random_state=SEED, stratify=labels)
    return Rows(x_train, y_train), Rows(x_test, y_test)


def train(rows: Rows, *, epochs: int = 6, batch_size: int = 32) -> DigitsNet:
    """Train for a few seconds with Adam (Kingma and Ba 2015) and a one-cycle learning rate (Smith 2018)."""
    torch.manual_seed(SEED)
    batches = DataLoader(TensorDataset(*map(torch.from_numpy, rows)), batch_size=batch_size, shuffle=True)
    module = DigitsNet()
    optimizer = torch.optim.Adam(module.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=epochs * len(batches))
    for _ in range(epochs):
        for x, labels in batches:
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(module(x), labels))
            optimizer.step()
            schedule.step()
    return module.eval()


def accuracy(module: nn.Module, rows: Rows) -> float:
    """Return the share of rows that the module answers right."""
    with torch.no_grad():
        answers = module(torch.from_numpy(rows.x)).argmax(1).numpy()
    return float((answers == rows.labels).mean())


def export(module: nn.Module, path: Path) -> None:
    """Write the module with a symbolic batch axis, as `torch.export` does; its input is called `x`."""
    example = torch.zeros(2, 1, 16, 16)
    program = torch.export.export(module, (example,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    torch.export.save(program, path)


def main(folder: Path) -> None:
    """Train, then write the model and both datasets into `folder`."""
    training, evaluation = load()
    module = train(training)
    print(f"{accuracy(module, evaluation):.2%} of {len(evaluation.x)} unseen rows right")
    export(module, folder / "digits.pt2")
    np.savez(folder / "calibration.npz", x=training.x[:CALIBRATION_ROWS], labels=training.labels[:CALIBRATION_ROWS])
    np.savez(folder / "evaluation.npz", x=evaluation.x, labels=evaluation.labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
