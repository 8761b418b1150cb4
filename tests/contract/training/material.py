"""What the tests of the stage `train` train with, and who hears what it tells."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from app.domain.datasets import DatasetFormat
from app.domain.recipes import Qat
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.training import TrainingProgress
from tests.graphs import rows
from tests.quantized import Array, Arrays, Grids, quantized
from workers.stage_records.common import RowSource
from workers.stage_records.training import CHECKPOINT_OUTPUT, Start, TrainResult, TrainSpec
from workers.toolchains.prepare import prepare
from workers.training.stage import train

ROWS, HELD_OUT = 48, 16
STEPS = 12
GIBIBYTES = 2**30
LABELS = np.random.default_rng(0).integers(0, 4, ROWS)


@dataclass(kw_only=True)
class Teller:
    """Hears what training tells, and keeps a copy of every checkpoint."""

    scratch: Path
    keep: Path | None = None
    at: Callable[[int], None] = lambda _step: None
    words: list[str] = field(default_factory=list)
    told: list[TrainingProgress] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def __call__(self, share: float, step: str) -> None:
        assert 0 <= share <= 1
        self.words.append(step)

    def tell(self, progress: TrainingProgress) -> None:
        self.told.append(progress)

    def checkpoint(self, step: int) -> None:
        self.kept.append(step)
        if self.keep is not None:
            shutil.copy(self.scratch / CHECKPOINT_OUTPUT, self.keep / f"{step}.safetensors")
        self.at(step)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A training that ended."""

    result: TrainResult
    artifact: bytes
    teller: Teller

    @property
    def outcome(self) -> Any:
        return self.result.outcome


def recipe(**fields: Any) -> Qat:
    given = {"steps": STEPS, "batch_size": 8, "looks": 4, "learning_rate": 1e-3, **fields}
    made = Qat(**given)
    object.__setattr__(made, "checkpoint_seconds", 0.0)  # after every step: users may ask for one a second at most
    return made


def source(numbers: range, path: str = "in/rows.npz") -> RowSource:
    return RowSource(path=path, format=DatasetFormat.NPZ, rows=tuple(numbers), preprocessing=None)


def tensor(name: str, *shape: int | None, dtype: DType = DType.FLOAT32) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=(None, *shape))


IMAGES = Signature(inputs=(tensor("x", 3, 8, 8),), outputs=(tensor("logits", 4),))


@dataclass(frozen=True, kw_only=True)
class Material:
    """A scratch folder with a model and rows."""

    scratch: Path
    signature: Signature

    def spec(self, asked: Qat, **fields: Any) -> TrainSpec:
        starts = sorted(path.name for path in (self.scratch / "in").glob("start*.onnx"))
        given: dict[str, Any] = {
            "float32": "in/float32.onnx",
            "starts": tuple(Start(recipe=name, artifact=f"in/{name}") for name in starts),
            "signature": self.signature,
            "recipe": asked,
            "training": source(range(HELD_OUT, ROWS)),
            "held_out": source(range(HELD_OUT)),
            "seconds": 600.0,
            "memory_bytes": 64 * GIBIBYTES,
        }
        return TrainSpec(**given | fields)

    def run(self, asked: Qat, *, teller: Teller | None = None, **fields: Any) -> Ran:
        shutil.rmtree(self.scratch / "out", ignore_errors=True)
        heard = teller or Teller(scratch=self.scratch)
        result = train(self.spec(asked, **fields), self.scratch, heard)
        return Ran(result=result, artifact=(self.scratch / result.artifact).read_bytes(), teller=heard)


def material(
    scratch: Path,
    model: onnx.ModelProto,
    inputs: Arrays,
    *,
    signature: Signature = IMAGES,
    labels: Array | None = None,
    starts: tuple[Grids, ...] = (Grids(),),
) -> Material:
    (scratch / "in").mkdir(parents=True)
    onnx.save(model, scratch / "in" / "float32.onnx")
    for number, grids in enumerate(starts):
        prepared = prepare(onnx.load(scratch / "in" / "float32.onnx"), Qat().starts[0])
        onnx.save(quantized(prepared, inputs, grids), scratch / "in" / f"start{number}.onnx")
    arrays = dict(inputs) if labels is None else {**inputs, "labels": labels}
    np.savez(scratch / "in" / "rows.npz", **arrays)  # type: ignore[arg-type]
    return Material(scratch=scratch, signature=signature)


FOUR = {"weight_bits": 4, "activation_bits": 4}


def answers(artifact: bytes, inputs: Arrays, output: str = "logits") -> Array:
    found: Array = onnxruntime.InferenceSession(artifact).run([output], dict(inputs))[0]
    return found


def error_of(artifact: bytes, given: Material) -> float:
    """Return how far the held-out rows' answers are from the model's own."""
    x = {"x": rows(HELD_OUT)}
    wanted = answers((given.scratch / "in/float32.onnx").read_bytes(), x)
    return float(np.square(answers(artifact, x) - wanted).sum())
