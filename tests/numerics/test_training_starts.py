"""What every toolchain makes can be trained: torch answers like the engines, and an untrained program is the start."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from app.domain.recipes import PtqStatic
from tests.contract.test_toolchains import FLOAT, Array, Classifier, constants, fill, run
from tests.graphs import INPUT, OUTPUT, conv_classifier, rows
from workers.toolchains.octet.rounding.levels import levels_of
from workers.toolchains.octet.rounding.wiring import Wiring
from workers.toolchains.prepare import prepare
from workers.training import biases
from workers.training.latents import latents_of
from workers.training.program import Program

STARTS = {
    "nncf": PtqStatic(),
    "nncf, asymmetric": PtqStatic(activations="asymmetric", weights="asymmetric"),
    "nncf, per tensor": PtqStatic(weight_granularity="per_tensor"),
    "nncf, 4 bits": PtqStatic(weight_bits=4, activation_bits=4),
    "nncf, smoothed and equalized": PtqStatic(smooth_quant=0.5, channel_equalization=True),
    "ort": PtqStatic(toolchain="ort"),
    "ort, 2 bits": PtqStatic(toolchain="ort", weight_bits=2, activations="asymmetric"),
    "torchao": PtqStatic(toolchain="torchao"),
}
LAYERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    start: onnx.ModelProto
    program: Program
    latents: int


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("upload") / "upload.pt2"
    module = Classifier(constants(conv_classifier())).eval()
    axes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=axes), path)
    return path.read_bytes()


@pytest.fixture(scope="module", params=STARTS)
def begun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upload: bytes) -> Begun:
    recipe = STARTS[request.param]
    folder: Path = fill(tmp_path_factory.mktemp("start"), upload)
    start = biases.in_float(run(folder, recipe).graph)
    most = 2 ** (recipe.weight_bits - 1)
    narrow = (-most, most - 1) if recipe.weight_bits < 8 else (0, -1)
    float32 = prepare(onnx.load(folder / FLOAT), recipe)
    latents, bounds = latents_of(start, float32, narrow=narrow, wide_layers=())
    program = Program(start, latents=latents, bounds=bounds, scales="learned").eval()
    return Begun(start=start, program=program, latents=len(latents))


def in_onnxruntime(model: onnx.ModelProto, x: Array) -> Array:
    found: Array = onnxruntime.InferenceSession(model.SerializeToString()).run([OUTPUT], {INPUT: x})[0]
    return found


def test_every_layer_has_its_float_weight_and_its_quantizers(begun: Begun) -> None:
    assert begun.latents == LAYERS
    assert len(list(begun.program.weights.children())) == LAYERS
    assert len(list(begun.program.activations.children())) == len(levels_of(Wiring(begun.start.graph))) >= LAYERS


def test_torch_answers_like_onnxruntime(begun: Begun) -> None:
    x = rows(16, seed=4)
    with torch.no_grad():
        found = begun.program({INPUT: torch.from_numpy(x)})[OUTPUT].numpy()
    # its fused kernels round to integers what is at the edge of two steps; one in 128, or 16, of a tensor's range
    # in a few of many places leaves less than a hundredth of the energy
    wanted = in_onnxruntime(begun.start, x)
    assert float(np.square(found - wanted).sum()) < 0.01 * float(np.square(wanted).sum())


def test_an_untrained_program_answers_to_the_bit_like_its_start(begun: Begun) -> None:
    x = rows(16, seed=4)
    np.testing.assert_array_equal(in_onnxruntime(begun.program.write(), x), in_onnxruntime(begun.start, x))


def test_every_parameter_gets_a_gradient(begun: Begun) -> None:
    begun.program({INPUT: torch.from_numpy(rows(8))})[OUTPUT].square().sum().backward()
    silent = [name for name, each in begun.program.named_parameters() if each.grad is None]
    assert silent == []
