"""What the check stage finds, and what it leaves alone: rows, inputs, preprocessing, and the layers' values."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from app.domain.datasets import DatasetFormat
from app.domain.preprocessing import ImagePreprocessing
from app.domain.recipes import PtqStatic
from app.domain.tensors import DType, Signature, TensorSpec
from tests import graphs
from workers.measure.checks import check
from workers.stage_records.common import RowSource
from workers.stage_records.making import TransformSpec
from workers.stage_records.measuring import CheckResult, CheckSpec
from workers.toolchains import transform

ROWS = 40
SIGNATURE = Signature(
    inputs=(TensorSpec(name=graphs.INPUT, dtype=DType.FLOAT32, shape=(None, 3, 8, 8)),),
    outputs=(TensorSpec(name=graphs.OUTPUT, dtype=DType.FLOAT32, shape=(None, 4)),),
)
IMAGENET = ImagePreprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
Rows = npt.NDArray[np.float32]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    onnx.save(graphs.conv_classifier(), tmp_path / "float32.onnx")
    return tmp_path


def source(
    scratch: Path, name: str, rows: Rows, *, labels: list[int] | None = None, images: ImagePreprocessing | None = None
) -> RowSource:
    arrays: dict[str, npt.NDArray[np.generic]] = {graphs.INPUT: rows}
    if labels is not None:
        arrays["labels"] = np.array(labels)
    np.savez(scratch / name, **arrays)  # type: ignore[arg-type]
    return RowSource(path=name, format=DatasetFormat.NPZ, rows=tuple(range(len(rows))), preprocessing=images)


def looked(
    scratch: Path,
    calibration: RowSource | None,
    evaluation: RowSource,
    *,
    variant: str | None = None,
    selection: RowSource | None = None,
) -> CheckResult:
    spec = CheckSpec(
        float32="float32.onnx",
        variant=variant,
        signature=SIGNATURE,
        calibration=calibration,
        evaluation=evaluation,
        classes=("cat", "dog", "owl"),
        selection=selection,
    )
    return check(spec, scratch, lambda _share, _words: None)


def codes(result: CheckResult) -> set[str]:
    return {finding.code for finding in result.findings}


def test_rows_that_fit_each_other_raise_no_finding(scratch: Path) -> None:
    one = source(scratch, "cal.npz", graphs.rows(ROWS, seed=1), labels=[0, 1] * 20)
    other = source(scratch, "eval.npz", graphs.rows(ROWS, seed=2), labels=[1, 0] * 20)
    assert looked(scratch, one, other).findings == ()


def test_a_calibration_row_inside_the_evaluation_set_is_named(scratch: Path) -> None:
    calibration, evaluation = graphs.rows(ROWS, seed=1), graphs.rows(ROWS, seed=2)
    evaluation[7] = calibration[3]
    result = looked(scratch, source(scratch, "cal.npz", calibration), source(scratch, "eval.npz", evaluation))
    (finding,) = (each for each in result.findings if each.code == "calibration_in_evaluation")
    assert (finding.severity, finding.rows) == ("warning", (7,))


def test_repeated_rows_are_named(scratch: Path) -> None:
    rows = graphs.rows(ROWS, seed=1)
    rows[5] = rows[2]
    result = looked(scratch, None, source(scratch, "eval.npz", rows))
    assert [finding.rows for finding in result.findings] == [(5,)]
    assert codes(result) == {"duplicates_evaluation"}


def test_a_class_that_never_calibrates_is_named(scratch: Path) -> None:
    one = source(scratch, "cal.npz", graphs.rows(4, seed=1), labels=[0, 0, 1, 1])
    other = source(scratch, "eval.npz", graphs.rows(4, seed=2), labels=[0, 1, 2, 2])
    (finding,) = (each for each in looked(scratch, one, other).findings if each.code == "missing_classes")
    assert "owl" in finding.message


def test_an_outlier_among_the_calibration_rows_is_named(scratch: Path) -> None:
    rows = graphs.rows(ROWS, seed=1)
    rows[11] *= 50
    result = looked(scratch, source(scratch, "cal.npz", rows), source(scratch, "eval.npz", graphs.rows(ROWS, seed=2)))
    (finding,) = (each for each in result.findings if each.code == "calibration_outside_range")
    assert finding.rows == (11,)


def test_evaluation_rows_that_calibration_never_saw_the_like_of_are_named(scratch: Path) -> None:
    calibration = source(scratch, "cal.npz", graphs.rows(ROWS, seed=1))
    result = looked(scratch, calibration, source(scratch, "eval.npz", graphs.rows(ROWS, seed=2) * 4))
    assert {"evaluation_outside_range", "normalisation_differs"} <= codes(result)


def test_pixels_that_were_not_normalised_are_noticed(scratch: Path) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (ROWS, 3, 8, 8)).astype(np.float32)
    assert codes(looked(scratch, None, source(scratch, "eval.npz", pixels, images=IMAGENET))) == {
        "normalisation_outside"
    }


def test_pixels_that_were_only_scaled_are_noticed(scratch: Path) -> None:
    pixels = np.random.default_rng(0).uniform(0, 1, (ROWS, 3, 8, 8)).astype(np.float32)
    assert codes(looked(scratch, None, source(scratch, "eval.npz", pixels, images=IMAGENET))) == {
        "normalisation_missing"
    }


def test_rows_that_came_out_of_the_preprocessing_are_left_alone(scratch: Path) -> None:
    pixels = np.random.default_rng(0).uniform(0, 1, (ROWS, 3, 8, 8)).astype(np.float32)
    mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in (IMAGENET.mean, IMAGENET.std))
    assert not codes(looked(scratch, None, source(scratch, "eval.npz", (pixels - mean) / std, images=IMAGENET)))


def quantized(scratch: Path, calibration: RowSource) -> str:
    spec = TransformSpec(artifact="float32.onnx", signature=SIGNATURE, recipe=PtqStatic(), calibration=calibration)
    return transform(spec, scratch, lambda _share, _words: None).artifact


def test_histograms_hold_every_weight_and_lie_on_one_range(scratch: Path) -> None:
    rows = source(scratch, "eval.npz", graphs.rows(ROWS, seed=2))
    result = looked(scratch, None, rows, variant=quantized(scratch, rows))
    weights = {each.layer: each for each in result.histograms if each.kind == "weight"}
    sizes = {"conv1": 16 * 3 * 9, "conv2": 32 * 16 * 9, "fc": 4 * 32}
    assert {layer: sum(each.before) for layer, each in weights.items()} == sizes
    assert {layer: sum(each.after) for layer, each in weights.items()} == sizes


def test_quantized_weights_lie_within_half_a_step_of_the_float_ones(scratch: Path) -> None:
    rows = source(scratch, "eval.npz", graphs.rows(ROWS, seed=2))
    result = looked(scratch, None, rows, variant=quantized(scratch, rows))
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graphs.conv_classifier().graph.initializer}
    largest = float(np.abs(known["w1"]).max())
    conv1 = next(each for each in result.histograms if (each.layer, each.kind) == ("conv1", "weight"))
    # a step is at most the largest weight over 127, or over half of that where the toolchain keeps a bit in reserve
    assert max(-conv1.low, conv1.high) <= largest * (1 + 1 / 63)


def test_values_that_calibration_cut_off_are_reported(scratch: Path) -> None:
    narrow = source(scratch, "cal.npz", graphs.rows(ROWS, seed=1) / np.float32(20))
    variant = quantized(scratch, narrow)
    result = looked(scratch, None, source(scratch, "eval.npz", graphs.rows(ROWS, seed=2)), variant=variant)
    (finding,) = (each for each in result.findings if each.code == "saturated_channels")
    assert "conv1" in finding.message


def test_channels_that_never_speak_are_reported(scratch: Path) -> None:
    dead = graphs.conv_classifier()
    for tensor in dead.graph.initializer:
        if tensor.name in ("w1", "b1"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[:8] = 0 if tensor.name == "w1" else -1
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(dead, scratch / "float32.onnx")
    rows = source(scratch, "eval.npz", graphs.rows(ROWS, seed=2))
    result = looked(scratch, None, rows, variant=quantized(scratch, rows))
    (finding,) = (each for each in result.findings if each.code == "dead_channels")
    assert finding.message.startswith("8 channels into conv2")


def test_evaluation_rows_that_also_chose_the_variant_are_named(scratch: Path) -> None:
    chose, evaluation = graphs.rows(ROWS, seed=1), graphs.rows(ROWS, seed=2)
    evaluation[9], evaluation[4] = chose[0], chose[3]
    selection = source(scratch, "chose.npz", chose)
    result = looked(scratch, None, source(scratch, "eval.npz", evaluation), selection=selection)
    (finding,) = result.findings
    assert (finding.code, finding.severity, finding.rows) == ("selection_in_evaluation", "warning", (4, 9))
    assert finding.message.startswith("2 evaluation rows also chose the variant")
