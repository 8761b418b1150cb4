"""The stage `train`: what cannot be trained is refused in one sentence that says what to do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from app.domain.errors import DatasetUnfit, DoesNotFit, ToolchainFailed
from app.domain.tensors import Signature
from tests.contract.training.material import HELD_OUT, IMAGES, LABELS, ROWS, Material, material, recipe, tensor
from tests.graphs import conv_classifier, drawn, rows, small
from tests.quantized import Array
from workers.stage_records.training import Teacher


@pytest.mark.parametrize("place", [5, 40])
def test_a_row_that_is_too_large_to_train_with_is_named(place: int, tmp_path: Path) -> None:
    x = rows(ROWS)
    plain = material(tmp_path / "s", conv_classifier(), {"x": x}, labels=LABELS)
    x[place] = 3e38
    np.savez(tmp_path / "s/in/rows.npz", x=x, labels=LABELS)
    with pytest.raises(DatasetUnfit, match=f"^Row {place} of the dataset.*so large"):
        plain.run(recipe())


def test_a_label_whose_square_is_no_number_is_named(tmp_path: Path) -> None:
    labels = np.zeros((ROWS, 4), np.float32)
    labels[20, 1] = 1e30
    given = material(tmp_path / "s", conv_classifier(), {"x": rows(ROWS)}, labels=labels)
    with pytest.raises(
        DatasetUnfit, match=r"Row 20 of the dataset, one of the training rows.*its label is above 1e\+18"
    ):
        given.run(recipe(loss="mse"))


def test_a_forecast_refuses_too_little_time(images: Material) -> None:
    with pytest.raises(DoesNotFit, match=r"about \d+ seconds for 9000000 steps .* 30 left .*: take fewer epochs"):
        images.run(recipe(steps=9_000_000), seconds=30.0)


def test_a_forecast_refuses_too_little_memory(images: Material) -> None:
    with pytest.raises(DoesNotFit, match=r"[\d,]+ bytes of memory and may take 1,048,576 .*a batch_size below 8"):
        images.run(recipe(), memory_bytes=2**20)


def labelled(images: Material, labels: Array | None) -> Material:
    path = images.scratch / "in/rows.npz"
    if labels is None:
        np.savez(path, x=rows(ROWS))
    else:
        np.savez(path, x=rows(ROWS), labels=labels)
    return images


WRONG = np.where(np.arange(ROWS) == HELD_OUT + 7, 12, LABELS)


BAD_LABELS: dict[str, tuple[str, Array | None, str]] = {
    "too high": ("cross_entropy", WRONG, r"Row 23 is labelled 12, but the model tells 4 classes apart, 0 to 3: mend"),
    "below 0": ("cross_entropy", np.where(WRONG == 12, -100, WRONG), r"Row 23 is labelled -100, but .* 0 to 3"),
    "one class": ("cross_entropy", np.ones(ROWS, np.int64), "All training rows have one class"),
    "none": ("cross_entropy", None, r"The loss 'cross_entropy' needs labels, and the training rows have none"),
    "real numbers": ("cross_entropy", np.ones(ROWS, np.float32), "needs classes as labels.*real numbers: take 'mse'"),
    "a map": ("cross_entropy", np.ones((ROWS, 2), np.int64), r"do not fit the model's first output, float32\[N, 4\]"),
    "too few values": ("mse", np.ones((ROWS, 3), np.float32), r"The labels are \[3\] a row, but .* \[4\]: send values"),
    "infinite": ("mse", np.full((ROWS, 4), np.inf, np.float32), "Some labels are not finite numbers"),
}


@pytest.mark.parametrize("what", BAD_LABELS)
def test_labels_that_cannot_teach_are_refused(what: str, images: Material) -> None:
    loss, labels, sentence = BAD_LABELS[what]
    with pytest.raises(DatasetUnfit, match=sentence):
        labelled(images, labels).run(recipe(loss=loss))


def test_a_batch_beyond_the_rows_is_refused(images: Material) -> None:
    with pytest.raises(DatasetUnfit, match=r"A batch of 33 rows was asked for, and 32 rows train: take a smaller"):
        images.run(recipe(batch_size=33))


def test_a_teacher_with_other_outputs_is_refused(images: Material) -> None:
    signature = Signature(inputs=IMAGES.inputs, outputs=(tensor("logits", 5),))
    teacher = Teacher(name="other:1", artifact="in/float32.onnx", signature=signature)
    with pytest.raises(
        DatasetUnfit,
        match=r"Teacher other:1 answers 'logits' as float32\[N, 5\], but the model answers 'logits' as float32\[N, 4\]",
    ):
        images.run(recipe(teacher="other:1"), teacher=teacher)


def test_a_model_without_a_batch_axis_is_refused(images: Material) -> None:
    one = (replace(IMAGES.inputs[0], shape=(1, 3, 8, 8), batch_axis=None),)
    with pytest.raises(ToolchainFailed, match=r"one row at a time.*export it with a symbolic batch axis"):
        images.run(recipe(), signature=Signature(inputs=one, outputs=IMAGES.outputs))


@pytest.mark.parametrize("asked", [{"flip": True}, {"crop": 2}])
def test_only_images_are_turned_and_cut(asked: dict[str, Any], tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc", transB=1)]
    model = small(
        nodes, inputs={"x": ["n", 6]}, outputs={"y": ["n", 3]}, weights={"w": drawn(3, 6), "b": drawn(3, scale=0.1)}
    )
    x = np.random.default_rng(0).normal(0, 1, (ROWS, 6)).astype(np.float32)
    signature = Signature(inputs=(tensor("x", 6),), outputs=(tensor("y", 3),))
    given = material(tmp_path / "s", model, {"x": x}, signature=signature)
    with pytest.raises(DatasetUnfit, match=r"flip and crop are for images, and the model takes float32\[N, 6\]"):
        given.run(recipe(**asked))
