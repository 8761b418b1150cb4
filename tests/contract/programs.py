"""Small torch modules as uploads: every operator that the toolchain `torchao` claims to know."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.domain.datasets import DatasetFormat
from app.domain.recipes import PtqStatic
from app.domain.tensors import Signature
from workers.formats import convert
from workers.measure.conversion import verify
from workers.stage_records.common import RowSource
from workers.stage_records.importing import ConvertSpec, VerifySpec
from workers.stage_records.making import TransformResult, TransformSpec
from workers.toolchains import transform

UPLOAD = "upload.pt2"
ROWS = 16
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A `.pt2` that went through the import, with calibration rows beside it."""

    folder: Path
    artifact: str
    signature: Signature
    was_training: bool = False

    def quantize(self, recipe: PtqStatic | None = None, *, upload: str | None = UPLOAD) -> TransformResult:
        """Run the `transform` stage."""
        rows = RowSource(path="cal.npz", format=DatasetFormat.NPZ, rows=tuple(range(ROWS)), preprocessing=None)
        spec = TransformSpec(
            artifact=self.artifact,
            signature=self.signature,
            recipe=recipe or PtqStatic(toolchain="torchao"),
            calibration=rows,
            upload=upload,
        )
        return transform(spec, self.folder, lambda _share, _words: None)

    def graph(self, name: str = "out/variant.onnx") -> onnx.ModelProto:
        """Load one of the files."""
        return onnx.load(self.folder / name)


def imported(
    module: nn.Module,
    example: tuple[Tensor, ...],
    folder: Path,
    *,
    fixed: bool = False,
    decomposed: bool = False,
    training: bool = False,
) -> Imported:
    """Export the module as users do and import it; calibration rows are drawn like the example."""
    batch = torch.export.Dim("batch")
    shapes = None if fixed else tuple({0: batch} for _ in example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of its own modules
        program = torch.export.export(module.train(training), example, dynamic_shapes=shapes)
        program = program.run_decompositions() if decomposed else program
    torch.export.save(program, folder / UPLOAD)
    converted = convert(ConvertSpec(upload=UPLOAD), folder, lambda _share, _words: None)
    spec = VerifySpec(artifact=converted.artifact, samples=converted.samples, original=converted.original)
    signature = verify(spec, folder, lambda _share, _words: None).signature
    np.savez(folder / "cal.npz", **drawn(signature, example, rows=ROWS, seed=1))  # type: ignore[arg-type]
    return Imported(
        folder=folder, artifact=converted.artifact, signature=signature, was_training=converted.was_training
    )


def drawn(signature: Signature, example: tuple[Tensor, ...], *, rows: int, seed: int) -> Arrays:
    """Draw rows of the example's shapes: normal for floats, 0 to 9 for whole numbers."""
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for spec, tensor in zip(signature.inputs, example, strict=True):
        shape = (rows, *tensor.shape[1:])
        floats = tensor.dtype is torch.float32
        found[spec.name] = rng.normal(0, 1, shape).astype(np.float32) if floats else rng.integers(0, 10, shape)
    return found


def spread(module: nn.Module) -> nn.Module:
    """Give every batch normalization numbers of its own, as training would."""
    for each in module.modules():
        norm = isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d))
        if norm and each.running_mean is not None:
            nn.init.uniform_(each.running_mean, -0.5, 0.5)  # type: ignore[arg-type] # it tracks them
            nn.init.uniform_(each.running_var, 0.5, 3)  # type: ignore[arg-type]
        if isinstance(each, nn.BatchNorm2d) and each.affine:
            nn.init.uniform_(each.weight, 0.5, 1.5)
    return module


class Residual(nn.Module):
    """Convolutions with one ReLU for all, a sum in place, max pooling, dropout, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.shortcut, self.relu = nn.Conv2d(3, 16, 1), nn.ReLU(inplace=True)
        self.pool, self.dropout, self.linear = nn.MaxPool2d(2), nn.Dropout(0.5), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        y = self.pool(self.relu(y)).mean((2, 3))
        logits: Tensor = self.linear(self.dropout(y))
        return logits


class Inverted(nn.Module):
    """An inverted residual with a depthwise convolution and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.up = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.down = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.deep(self.up(x))
        scale = self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(y, 1))))
        answer: Tensor = self.head(x + self.down(y * torch.sigmoid(scale)))
        return answer


class Shuffled(nn.Module):
    """Channels split, joined again and shuffled, with grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=2)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = functional.relu(self.first(x)).chunk(2, 1)
        x = torch.cat([left, functional.relu(self.part(right))], 1)
        n, channels, height, width = x.shape
        x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
        answer: Tensor = self.last(x)
        return answer


class Segmenter(nn.Module):
    """Down, up by a transposed convolution, and joined with what was before."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.relu(self.down1(x))
        deep = functional.relu(self.down2(functional.max_pool2d(wide, 2)))
        answer: Tensor = self.last(torch.cat([wide, functional.relu(self.up(deep))], 1))
        return answer


class Volume(nn.Module):
    """Convolutions over three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(functional.max_pool3d(functional.relu(self.first(x)), 2))
        return answer


class Sound(nn.Module):
    """Convolutions over time and the largest value, which OpenVINO gets wrong where it is quantized after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 16, 5, padding="same", groups=2), nn.Conv1d(16, 16, 3, dilation=2)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(functional.relu(self.second(functional.relu(self.first(x)))).amax(-1))
        return answer


class Encoder(nn.Module):
    """An embedding, one transformer layer and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.last = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.encoder(self.table(x)).mean(1))
        return answer


class Attention(nn.Module):
    """Attention written out: products of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / 6, -1)
        answer: Tensor = weights @ self.value(x)
        return answer


class Recurrent(nn.Module):
    """An LSTM, and a linear layer if wanted."""

    def __init__(self, *, linear: bool) -> None:
        super().__init__()
        self.cell = nn.LSTM(8, 16, batch_first=True)
        self.last = nn.Linear(16, 5) if linear else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.cell(x)[0])
        return answer


class Recommender(nn.Module):
    """Two inputs, two tables."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(400, 32), nn.Embedding(300, 32)
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        answer: Tensor = self.layers(torch.cat([self.users(user), self.items(item)], -1)).squeeze(-1)
        return answer


class SharedByTwo(nn.Module):
    """One convolution before two batch normalizations, and one that is read before its normalization too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.other, self.bn3, self.last = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv(x))) + functional.relu(self.bn2(self.conv(-x)))
        z = self.other(y)
        answer: Tensor = self.last(functional.relu(z) + functional.relu(self.bn3(z)))
        return answer


class Upscaler(nn.Module):
    """A transposed convolution in groups between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(functional.relu(self.up(functional.relu(self.first(x)))))
        return answer
