"""The model that all servers serve, its rows and its golden answers, made once and kept in the benchmark's folder.

MobileNetV2's shape in int8, quantized by Octet's own job. Its weights are random, but its batch normalizations have
seen the rows: otherwise the logits would hardly depend on the row, and a wrong answer would look like a right one.
"""

import hashlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from app.client import Octet
from app.domain.preprocessing import ImagePreprocessing
from app.domain.recipes import PtqStatic
from benchmarks.serving.home import REPOSITORY, home
from benchmarks.serving.peers.engine import MEAN, STD, compiled
from benchmarks.shapes import MobileNetV2
from examples.service import embedded_octet

MODEL, NOOP = "mobilenetv2", "noop"
ROWS, CALIBRATION = 16, 96
NOOP_WIDTH = 16
_SIDE, _COARSE = 224, 7
_JPEG_QUALITY = 90

TOLERANCE = 0.10
"""How far a right answer may lie from the golden one: root mean square of the difference, over that of the two rows
that are most alike. Batches and fused preprocessing gave the same logits to the last bit where this was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a benchmark sends and expects.

    Attributes:
        folder: what Octet keeps its data in (`octet-data`), with both models imported and `int8` published.
        artifact: the int8 graph that every server runs.
        input_name: of that graph.
        floats, pixels, jpegs: the same rows in three forms.
        golden, golden_jpeg: logits of the first two, and of what the JPEGs decode to.
        noise: largest root mean square of the difference that counts as none.
    """

    folder: Path
    artifact: Path
    input_name: str
    floats: npt.NDArray[np.float32]
    pixels: npt.NDArray[np.uint8]
    jpegs: tuple[bytes, ...]
    golden: npt.NDArray[np.float32]
    golden_jpeg: npt.NDArray[np.float32]
    noise: float


def subject() -> Subject:
    """Return the subject, made first if it is not there for this state of the code."""
    folder = home() / f"subject-{_key()}"
    if not (folder / "rows.npz").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder)
    return _read(folder)


def _key() -> str:
    """Name the code that Octet's stored data depends on, so that no data of another state is taken."""
    files = sorted([*(REPOSITORY / "app/domain").rglob("*.py"), Path(__file__), REPOSITORY / "benchmarks/shapes.py"])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _make(folder: Path) -> None:
    folder.mkdir(parents=True)
    pixels = _pictures(CALIBRATION + ROWS)
    floats = _floats(pixels)
    _export(folder / "model.pt2", floats)
    _export_noop(folder / "noop.pt2")
    np.savez(folder / "calibration.npz", x=floats[:CALIBRATION])
    with embedded_octet(folder) as octet:
        name = _quantize(octet, folder)
    jpegs = [_jpeg(picture) for picture in pixels[CALIBRATION:]]
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs])
    golden = _golden(folder / "int8.onnx", floats[CALIBRATION:])
    np.savez(
        folder / "rows.npz",
        input_name=np.array(name),
        pixels=pixels[CALIBRATION:],
        golden=golden,
        golden_jpeg=_golden(folder / "int8.onnx", _floats(decoded)),
        jpeg_sizes=np.array([len(jpeg) for jpeg in jpegs]),
        jpegs=np.frombuffer(b"".join(jpegs), np.uint8),
    )


def _quantize(octet: Octet, folder: Path) -> str:
    preprocessing = ImagePreprocessing(mean=MEAN, std=STD)
    octet.upload_model(folder / "model.pt2", name=MODEL, preprocessing=preprocessing)
    octet.upload_model(folder / "noop.pt2", name=NOOP)
    octet.upload_dataset(folder / "calibration.npz", name="calibration")
    octet.wait_model(MODEL)
    octet.wait_model(NOOP)
    octet.wait_dataset("calibration")
    job = octet.quantize(
        MODEL, calibration="calibration", recipe=PtqStatic(calibration_rows=CALIBRATION // 2), variant="int8"
    )
    octet.wait_success(job.id)
    octet.route(f"{MODEL}@int8")
    octet.download(f"{MODEL}@int8", to=folder / "int8.onnx")
    return octet.variant(f"{MODEL}@int8").signature.inputs[0].name


def _read(folder: Path) -> Subject:
    kept = np.load(folder / "rows.npz")
    ends = np.cumsum(kept["jpeg_sizes"])
    together = kept["jpegs"].tobytes()
    golden = kept["golden"]
    return Subject(
        folder=folder,
        artifact=folder / "int8.onnx",
        input_name=str(kept["input_name"]),
        floats=_floats(kept["pixels"]),
        pixels=kept["pixels"],
        jpegs=tuple(
            together[end - size : end] for end, size in zip(ends.tolist(), kept["jpeg_sizes"].tolist(), strict=True)
        ),
        golden=golden,
        golden_jpeg=kept["golden_jpeg"],
        noise=TOLERANCE * least_distance(golden),
    )


def least_distance(golden: npt.NDArray[np.float32]) -> float:
    """Return the root mean square of the difference between the two rows' logits that are most alike."""
    apart = [
        float(np.sqrt(np.mean((golden[one] - golden[other]) ** 2)))
        for one in range(len(golden))
        for other in range(one)
    ]
    return min(apart)


def _pictures(count: int) -> npt.NDArray[np.uint8]:
    """Draw pictures of few large patches: unlike noise, they differ from each other after averaging."""
    random = np.random.default_rng(7)
    patches = random.uniform(0, 255, (count, _COARSE, _COARSE, 3)) * random.uniform(0.2, 1, (count, 1, 1, 3))
    large = patches.repeat(_SIDE // _COARSE, axis=1).repeat(_SIDE // _COARSE, axis=2)
    noisy = large + random.normal(0, 8, large.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _floats(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    scaled = (pixels.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)


def _jpeg(picture: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _export(path: Path, floats: npt.NDArray[np.float32]) -> None:
    torch.manual_seed(0)
    module = MobileNetV2()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # statistics of all the rows seen, not of the last ones mostly
    with torch.no_grad():
        module.train()(torch.from_numpy(floats[:32]))
    _save(module.eval(), torch.from_numpy(floats[:2]), path)


class Noop(nn.Module):
    """The least that is a model: what is left of a request's time is the server's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def _export_noop(path: Path) -> None:
    _save(Noop(), torch.zeros(2, NOOP_WIDTH), path)


def _save(module: nn.Module, rows: torch.Tensor, path: Path) -> None:
    exported: Any = torch.export.export(module, (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(exported, path)


def _golden(artifact: Path, floats: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    request = compiled(artifact, streams=1, pixels=False).create_infer_request()
    answers = []
    for row in floats:
        request.infer([row[None]])
        answers.append(request.get_output_tensor(0).data[0].copy())
    return np.stack(answers)
