"""Imported programs, float32 and quantized: the operator table runs them in torch as ONNX Runtime does."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from app.domain.recipes import PtqStatic
from tests.contract import programs
from tests.contract.programs import Arrays, Imported, drawn, imported
from workers.toolchains.octet.rounding.operators import run

VARIANT = "out/variant.onnx"
IMAGE = (torch.zeros(2, 3, 16, 16),)
WORDS = torch.zeros(2, 6, dtype=torch.int64)
# Sums of at most some hundred float32 products in another order, through some ten layers.
TOLERANCE = 1e-5
# Where two orders of summing fall to two sides of a rounding edge, few values move by one step of 255: less than
# rounding does to all of them, which for a deviation among 8 is 8 / 255 / sqrt(12), 41 dB below.
LEAST_SQNR = 41.0


class Reading(nn.Module):
    """A recurrent layer both ways over time, and a linear one on its last step."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU | nn.RNN]) -> None:
        super().__init__()
        self.cells, self.last = kind(8, 16, 2, batch_first=True, bidirectional=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.cells(x)[0][:, -1])
        return answer


class Detecting(nn.Module):
    """Boxes on a grid from two scales, and the scores of the best."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Conv2d(32, 12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = functional.silu(self.norm(self.fine(x)))
        found = self.head(torch.cat([fine, functional.interpolate(self.coarse(fine), scale_factor=2.0)], 1))
        rows, _, height, width = found.shape
        boxes = found.view(rows, 2, 6, height, width).permute(0, 1, 3, 4, 2).sigmoid()
        down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = (boxes[..., :2] + torch.stack((right, down), -1)) / height
        return torch.cat([centres, boxes[..., 2:]], -1).reshape(rows, -1, 6), boxes[..., 4].reshape(rows, -1).topk(5)[0]


class Causal(nn.Module):
    """Attention that looks back only, on normalized and gated values."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.last = nn.Linear(16, 16), nn.RMSNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.into(x))[:, None]
        y = functional.scaled_dot_product_attention(y, y, y, is_causal=True)[:, 0]
        answer: Tensor = self.last(functional.silu(y)).mean(1)
        return answer


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "folded normalizations and dropout": (programs.Residual, IMAGE),
    "a shared layer and normalizations that stay": (programs.SharedByTwo, IMAGE),
    "several inputs": (programs.Recommender, (torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))),
    "inverted residual": (programs.Inverted, IMAGE),
    "segmenter": (programs.Segmenter, IMAGE),
    "encoder": (programs.Encoder, (WORDS,)),
    "causal attention": (Causal, (torch.zeros(2, 6, 16),)),
    "detector": (Detecting, IMAGE),
    "lstm": (lambda: Reading(nn.LSTM), (torch.zeros(2, 6, 8),)),
    "gru": (lambda: Reading(nn.GRU), (torch.zeros(2, 6, 8),)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Imported]:
    make, example = CASES[request.param]
    torch.manual_seed(0)
    return request.param, imported(programs.spread(make()), example, tmp_path_factory.mktemp("case"))


def both(name: str, model: Imported, file: str) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Return every output as the table and as ONNX Runtime compute it, node by node."""
    rows = drawn(model.signature, CASES[name][1], rows=5, seed=3)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = onnxruntime.InferenceSession(str(model.folder / file), settings).run(None, rows)
    return list(zip(by_table(model.graph(file).graph, rows), wanted, strict=True))


def by_table(graph: onnx.GraphProto, rows: Arrays) -> list[npt.NDArray[Any]]:
    stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    known = stored | {name: torch.from_numpy(array) for name, array in rows.items()}
    return [run(graph.node, known, value.name).numpy() for value in graph.output]


def test_float32_answers_are_the_same(case: tuple[str, Imported]) -> None:
    name, model = case
    for found, wanted in both(name, model, model.artifact):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def test_quantized_answers_are_the_same(case: tuple[str, Imported]) -> None:
    name, model = case
    model.quantize(PtqStatic(toolchain="nncf"))
    for found, wanted in both(name, model, VARIANT):
        noise, energy = float(((found - wanted) ** 2).sum()), float((wanted**2).sum())
        assert 10 * math.log10(energy / max(noise, 1e-30)) > LEAST_SQNR


@pytest.mark.parametrize(
    ("name", "stays"),
    [("folded normalizations and dropout", False), ("a shared layer and normalizations that stay", True)],
)
def test_what_the_cases_say_of_normalizations_is_so(name: str, *, stays: bool, tmp_path: Path) -> None:
    make, example = CASES[name]
    graph = imported(make(), example, tmp_path).graph("out/float32.onnx")
    assert ("BatchNormalization" in {node.op_type for node in graph.graph.node}) is stays


@pytest.mark.parametrize(("kind", "operator"), [(nn.LSTM, "LSTM"), (nn.GRU, "GRU")])
def test_recurrent_layers_are_imported_whole_and_stay_in_float(
    kind: type[nn.LSTM | nn.GRU], operator: str, tmp_path: Path
) -> None:
    model = imported(Reading(kind), (torch.zeros(2, 6, 8),), tmp_path)
    model.quantize(PtqStatic(toolchain="nncf"))
    nodes = model.graph().graph.node
    made = {name: node.op_type for node in nodes for name in node.output}
    cells = [node for node in nodes if node.op_type == operator]
    assert len(cells) == 2
    assert not any(made.get(name) == "DequantizeLinear" for cell in cells for name in cell.input[1:3])
