"""The score stage on real graphs: classifiers, segmentation, images, integers, several outputs; and its pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter

from app.domain.datasets import DatasetFormat
from app.domain.errors import DatasetUnfit, ToolchainFailed
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution
from tests import graphs
from workers.measure.gallery import picture
from workers.measure.score import score
from workers.stage_records.common import RowSource
from workers.stage_records.measuring import Form, ScoreResult, ScoreSpec

Array = npt.NDArray[Any]
ROWS = 40
X = graphs.rows(ROWS)
TYPES = {DType.FLOAT32: TensorProto.FLOAT, DType.INT64: TensorProto.INT64}


def forms(scratch: Path, nodes: Sequence[onnx.NodeProto], outputs: Sequence[TensorSpec], *, noise: float) -> None:
    """Save two graphs over `x`, float32[n, 3, 8, 8]: the second's 1x1 convolution has noise in its weights."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (4, 3, 1, 1)).astype(np.float32)
    for name, extra in (("float32", 0.0), ("int8", noise)):
        noisy = weight + np.float32(extra) * rng.normal(0, 1, weight.shape).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["c"]), *nodes],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
            [helper.make_tensor_value_info(spec.name, TYPES[spec.dtype], ["n", *spec.shape[1:]]) for spec in outputs],
            [numpy_helper.from_array(noisy, "w")],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(made, scratch / f"{name}.onnx")


def scored(
    scratch: Path,
    nodes: Sequence[onnx.NodeProto],
    *outputs: TensorSpec,
    labels: Array | None = None,
    noise: float = 0.2,
    names: tuple[str, ...] = ("float32", "int8"),
) -> ScoreResult:
    forms(scratch, nodes, outputs, noise=noise)
    graphs.save_dataset(scratch / "data.npz", X, labels)
    x = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 3, 8, 8))
    spec = ScoreSpec(
        forms=tuple(Form(name=name, artifact=f"{name}.onnx", execution=Execution()) for name in names),
        signature=Signature(inputs=(x,), outputs=outputs),
        evaluation=RowSource(path="data.npz", format=DatasetFormat.NPZ, rows=tuple(range(ROWS)), preprocessing=None),
        classes=("cat", "dog"),
    )
    result = score(spec, scratch, lambda _share, _words: None)
    assert TypeAdapter(ScoreResult).validate_json(TypeAdapter(ScoreResult).dump_json(result)) == result
    return result


def floats(name: str, *row: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=DType.FLOAT32, shape=(None, *row))


POOL = [helper.make_node("GlobalAveragePool", ["c"], ["p"]), helper.make_node("Flatten", ["p"], ["y"], axis=1)]
MAPS = [helper.make_node("Identity", ["c"], ["y"])]
IDS = [helper.make_node("ArgMax", ["c"], ["y"], axis=1, keepdims=0)]


def names(result: ScoreResult) -> set[str]:
    return {metric.name for metric in result.metrics}


def test_a_classifier_has_metrics_accuracy_flips_and_invariance(tmp_path: Path) -> None:
    labels = np.random.default_rng(2).integers(0, 4, ROWS)
    found = scored(tmp_path, POOL, floats("y", 4), labels=labels)
    assert names(found) == {"top1", "f1", "agreement", "retrieval", "cosine", "sqnr", "kl"}
    top1 = found.metrics[0]
    assert found.accuracy is not None
    assert top1.measured["int8"].value == found.accuracy.measured["int8"].value
    assert top1.drop.value == -found.accuracy.difference.value
    assert top1.changed == (len(found.accuracy.flips.lost), len(found.accuracy.flips.gained))
    assert top1.p_value is not None
    assert found.invariance is not None
    assert found.invariance.invariant


def test_fidelity_and_its_metrics_say_the_same(tmp_path: Path) -> None:
    found = scored(tmp_path, POOL, floats("y", 4))
    near = found.fidelity["int8"]
    values = {metric.name: metric.measured["int8"].value for metric in found.metrics}
    assert near.agreement is not None
    assert values["agreement"] == near.agreement.value
    assert (near.cosine, near.sqnr_db, near.kl) == pytest.approx((values["cosine"], values["sqnr"], values["kl"]))


def test_a_segmentation_model_has_miou_by_class(tmp_path: Path) -> None:
    labels = np.random.default_rng(2).integers(0, 4, (ROWS, 8, 8)).astype(np.uint8)
    labels[:, 0] = 255
    found = scored(tmp_path, MAPS, floats("y", 4, 8, 8), labels=labels)
    assert names(found) == {"miou", "agreement", "cosine", "sqnr"}
    assert [entry.name for entry in found.metrics[0].classes] == ["0", "1", "2", "3"]
    assert (found.accuracy, found.gallery) == (None, ())


def test_images_have_psnr(tmp_path: Path) -> None:
    labels = np.random.default_rng(2).normal(size=(ROWS, 4, 8, 8)).astype(np.float32)
    found = scored(tmp_path, MAPS, floats("y", 4, 8, 8), labels=labels)
    assert names(found) == {"mae", "rmse", "psnr", "cosine", "sqnr"}


@pytest.mark.parametrize("kept", [1, 0])
def test_a_model_that_answers_classes_is_scored_by_them(kept: int, tmp_path: Path) -> None:
    flatten = helper.make_node("Flatten", ["p"], ["f"])
    nodes = [POOL[0], flatten, helper.make_node("ArgMax", ["f"], ["y"], axis=1, keepdims=kept)]
    output = TensorSpec(name="y", dtype=DType.INT64, shape=(None, 1) if kept else (None,))
    found = scored(tmp_path, nodes, output, labels=np.arange(ROWS) % 4)
    assert names(found) == {"top1", "f1", "agreement"}
    assert found.accuracy is not None
    assert found.fidelity["int8"].agreement is not None
    assert found.fidelity["int8"].kl is None


def test_a_model_that_answers_maps_of_classes_is_scored_by_them(tmp_path: Path) -> None:
    output = TensorSpec(name="y", dtype=DType.INT64, shape=(None, 8, 8))
    found = scored(tmp_path, IDS, output, labels=np.random.default_rng(2).integers(0, 4, (ROWS, 8, 8)))
    assert names(found) == {"miou", "agreement"}
    assert names(scored(tmp_path, IDS, output)) == {"agreement"}


def test_all_outputs_count_for_closeness_and_the_first_for_labels(tmp_path: Path) -> None:
    outputs = floats("y", 4), floats("c", 4, 8, 8), TensorSpec(name="i", dtype=DType.INT64, shape=(None, 8, 8))
    nodes = [*POOL, helper.make_node("ArgMax", ["c"], ["i"], axis=1, keepdims=0)]
    both = scored(tmp_path, nodes, *outputs, labels=np.arange(ROWS) % 4)
    alone = scored(tmp_path, POOL, outputs[0], labels=np.arange(ROWS) % 4)
    assert both.metrics[0] == alone.metrics[0]
    assert both.fidelity["int8"].cosine != alone.fidelity["int8"].cosine


def test_labels_that_do_not_fit_leave_the_rest(tmp_path: Path) -> None:
    found = scored(tmp_path, MAPS, floats("y", 4, 8, 8), labels=np.zeros(ROWS, np.int64))
    assert names(found) == {"cosine", "sqnr"}


def test_a_class_beyond_the_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnfit, match="The map of row 0 has class 4"):
        scored(tmp_path, MAPS, floats("y", 4, 8, 8), labels=np.full((ROWS, 8, 8), 4))


def test_a_form_that_answers_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match="int8 form answers NaN or an infinity on evaluation row 0"):
        scored(tmp_path, POOL, floats("y", 4), noise=np.nan)


def test_a_model_that_answers_nan_everywhere_proves_nothing(tmp_path: Path) -> None:
    logarithm = [helper.make_node("Exp", ["f"], ["e"]), helper.make_node("Neg", ["e"], ["n"])]
    nodes = [POOL[0], helper.make_node("Flatten", ["p"], ["f"]), *logarithm, helper.make_node("Log", ["n"], ["y"])]
    with pytest.raises(DatasetUnfit, match="float32 model itself"):
        scored(tmp_path, nodes, floats("y", 4))


def test_rows_that_float32_does_not_answer_are_named_and_count_for_no_agreement(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32)
    lowest = (X.mean(axis=(2, 3)) @ weight.T).min(axis=1)
    # between two rows, so that rounding does not decide which have the logarithm of something negative
    shift = -np.sort(lowest)[9:11].mean(dtype=np.float32)
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32(shift)))
    nodes = [POOL[0], helper.make_node("Flatten", ["p"], ["f"]), constant]
    nodes += [helper.make_node("Add", ["f", "k"], ["s"]), helper.make_node("Log", ["s"], ["y"])]
    found = scored(tmp_path, nodes, floats("y", 4), noise=0.0)
    broken = np.flatnonzero(lowest + shift < 0)
    (finding,) = found.findings
    assert (finding.code, finding.rows) == ("float32_not_finite", tuple(broken.tolist()))
    assert "to 10 evaluation rows" in finding.message
    agreement = found.fidelity["int8"].agreement
    assert agreement is not None
    assert (agreement.rows, agreement.value) == (ROWS - 10, 1.0)
    assert [metric.rows for metric in found.metrics if metric.name == "agreement"] == [ROWS - 10]


def test_an_output_that_loses_rows_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["c"], ["y"], keepdims=1)]
    with pytest.raises(ToolchainFailed, match="Output 'y' has 1 rows for 32 rows of input"):
        scored(tmp_path, nodes, floats("y", 1, 1, 1))


def test_float32_alone_has_no_drop(tmp_path: Path) -> None:
    found = scored(tmp_path, POOL, floats("y", 4), labels=np.arange(ROWS) % 4, names=("float32",))
    assert names(found) == {"top1", "f1"}
    assert [metric.drop.value for metric in found.metrics] == [0, 0]


def test_pictures_show_changed_rows_and_lost_ones_first(tmp_path: Path) -> None:
    found = scored(tmp_path, POOL, floats("y", 4), labels=np.arange(ROWS) % 4, noise=0.6)
    assert found.accuracy is not None
    flips = found.accuracy.flips
    assert [each.row for each in found.gallery] == [*flips.lost, *flips.gained, *flips.moved][:24]
    first = found.gallery[0]
    assert (first.width, first.height, len(first.pixels)) == (8, 8, 192)
    assert (min(first.pixels), max(first.pixels)) == (0, 255)
    assert first.label in ("cat", "dog", "2", "3")
    assert first.float32 == first.label != first.variant


def test_without_labels_pictures_show_what_moved(tmp_path: Path) -> None:
    found = scored(tmp_path, POOL, floats("y", 4), noise=0.6)
    assert found.gallery
    assert all(each.label is None and each.float32 != each.variant for each in found.gallery)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3, 100, 50), (64, 32)),
        ((50, 200, 3), (16, 64)),
        ((1, 64, 64), (64, 64)),
        ((1, 3, 7, 9), (7, 9)),
        ((10,), None),
        ((4, 8, 8), None),
        ((3, 2, 100), None),
        ((3, 16), None),
    ],
)
def test_a_picture_is_made_of_what_looks_like_an_image(shape: tuple[int, ...], size: tuple[int, int] | None) -> None:
    made = picture(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    assert (None if made is None else made.shape) == (None if size is None else (*size, 3))


def test_a_picture_keeps_its_colours_and_averages_areas() -> None:
    red = np.zeros((3, 128, 128), np.float32)
    red[0, ::2] = 5
    made = picture(red)
    assert made is not None
    # every second line is 255: an area of two lines averages to 127 or 128
    assert set(np.unique(made[..., 0]).tolist()) <= {127, 128}
    assert not made[..., 1:].any()


def test_a_flat_picture_is_black() -> None:
    made = picture(np.full((1, 8, 8), 3.0))
    assert made is not None
    assert not made.any()
