"""ResNet-20 with its published weights: what trains, what scores, and the folder that the stages work in."""

import shutil
from dataclasses import dataclass
from math import floor
from pathlib import Path

import numpy as np
import onnx

from app.domain.datasets import DatasetFormat
from app.domain.recipes.qat import Qat
from app.domain.recipes.static import StaticQuantization
from app.domain.tensors import DType, Signature, TensorSpec
from examples import resnet20
from workers.jobs.rows import sample
from workers.stage_records.common import RowSource

UNLABELLED, LABELLED = "in/unlabelled.npz", "in/labelled.npz"
FLOAT32 = "in/float32.onnx"

_COMPUTING = ("Conv", "Gemm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """
    Attributes:
        home: everything of a run lies here; `kept` and `scratch`, the folder that stages work in, too.
        rows: how many there are to train.
        edges: names of the first and the last layer with weights.
        test, labels: files with the rows that score.
        test_rows: how many of them.
    """

    home: Path
    signature: Signature
    rows: int
    edges: tuple[str, str]
    test: Path
    labels: Path
    test_rows: int

    @property
    def scratch(self) -> Path:
        return self.home / "scratch"

    @property
    def float32(self) -> Path:
        return self.scratch / FLOAT32

    def keep(self, output: str, *, name: str) -> Path:
        """Move what a stage wrote out of the way of the next."""
        (self.home / "kept").mkdir(exist_ok=True)
        return Path(shutil.move(self.scratch / output, self.home / "kept" / name))

    def give(self, path: Path) -> str:
        """Put a file where stages may read it; return its name there."""
        shutil.copy(path, self.scratch / "in" / path.name)
        return f"in/{path.name}"

    def clear(self) -> None:
        """Remove what an earlier stage left: training would go on from its state."""
        for left in ("out", "rows-0", "rows-1"):
            shutil.rmtree(self.scratch / left, ignore_errors=True)

    def split(self, recipe: StaticQuantization) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the rows that train and those held out, as a job would part them."""
        share = recipe.held_out if isinstance(recipe, Qat) else Qat().held_out
        every = tuple(range(self.rows))
        held = sample(every, max(1, floor(self.rows * share)), seed=recipe.seed)
        return tuple(sorted(set(every) - set(held))), held

    def calibrating(self, recipe: StaticQuantization) -> tuple[int, ...]:
        """Return the rows that set the ranges: some of those that train."""
        return sample(self.split(recipe)[0], recipe.calibration_rows, seed=recipe.seed)


def source(rows: tuple[int, ...], *, labelled: bool) -> RowSource:
    """Return training rows as stages take them."""
    path = LABELLED if labelled else UNLABELLED
    return RowSource(path=path, format=DatasetFormat.NPZ, rows=rows, preprocessing=None)


def prepared(data: Path, *, home: Path, test_rows: int | None) -> Subject:
    """Write model and rows below `home`: train rows to the scratch folder, test rows where no stage reads them."""
    (home / "scratch" / "in").mkdir(parents=True)
    float32 = home / "scratch" / FLOAT32
    resnet20.export_onnx(resnet20.load(data / "resnet20.safetensors"), float32)
    images = np.load(data / "cifar10.npz")
    x = resnet20.preprocess(images["x_train"])
    np.savez(home / "scratch" / UNLABELLED, x=x)
    np.savez(home / "scratch" / LABELLED, x=x, labels=images["y_train"].astype(np.int64))
    test, labels = home / "test.npy", home / "labels.npy"
    np.save(test, resnet20.preprocess(images["x_test"][:test_rows]))
    np.save(labels, images["y_test"][:test_rows].astype(np.int64))
    graph = onnx.load(float32).graph
    layers = [node.name for node in graph.node if node.op_type in _COMPUTING]
    return Subject(
        home=home,
        signature=_signature(graph.input[0].name, graph.output[0].name),
        rows=len(x),
        edges=(layers[0], layers[-1]),
        test=test,
        labels=labels,
        test_rows=len(images["y_test"][:test_rows]),
    )


def _signature(x: str, output: str) -> Signature:
    return Signature(
        inputs=(TensorSpec(name=x, dtype=DType.FLOAT32, shape=(1, 3, 32, 32), batch_axis=0),),
        outputs=(TensorSpec(name=output, dtype=DType.FLOAT32, shape=(1, 10), batch_axis=0),),
    )
