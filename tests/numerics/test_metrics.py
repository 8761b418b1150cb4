"""Metrics against other libraries, against definitions written out, and at the edges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn import metrics as reference

from app.domain.errors import DatasetUnfit
from app.domain.evidence import MetricScore
from app.domain.metrics import METRICS
from workers.measure.answers import Answers
from workers.measure.metrics import Metrics
from workers.measure.metrics.retrieval import recalls, unit

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
ROWS = 90
LABELS = RNG.integers(0, 8, ROWS)
LOGITS = RNG.normal(0, 1, (ROWS, 8)).astype(np.float32) + 2 * np.eye(8, dtype=np.float32)[LABELS]
NEAR = (LOGITS + RNG.normal(0, 0.4, LOGITS.shape)).astype(np.float32)
MAPS = RNG.integers(0, 5, (ROWS, 6, 7))
MAP_SCORES = np.moveaxis(np.eye(5)[MAPS] + RNG.normal(0, 0.5, (*MAPS.shape, 5)), -1, 1).astype(np.float32)
NEAR_MAPS = (MAP_SCORES + RNG.normal(0, 0.2, MAP_SCORES.shape)).astype(np.float32)
IMAGES = RNG.uniform(0, 1, (ROWS, 1, 8, 8))
CLEAN = (IMAGES + RNG.normal(0, 0.05, IMAGES.shape)).astype(np.float32)
NOISY = (CLEAN + RNG.normal(0, 0.02, IMAGES.shape)).astype(np.float32)


def scored(*forms: Array, labels: Array | None = None, batch: int = 32) -> dict[str, MetricScore]:
    """Score forms of one output each, float32 first."""
    made = Metrics([f"form{number}" for number in range(len(forms))], rows=len(forms[0]))
    for start in range(0, len(forms[0]), batch):
        part = slice(start, start + batch)
        some = None if labels is None else labels[part]
        made.add(Answers([[form[part]] for form in forms], labels=some, rows=range(start, start + len(forms[0][part]))))
    return {score.name: score for score in made.scores()}


def values(score: MetricScore) -> list[float]:
    return [entry.value for entry in score.measured.values()]


def test_every_metric_of_the_table_has_a_module_and_some_answers() -> None:
    found = {*scored(LOGITS, NEAR, labels=LABELS), *scored(MAP_SCORES, NEAR_MAPS, labels=MAPS)}
    assert found | {*scored(CLEAN, NOISY, labels=IMAGES)} == set(METRICS)


def test_top1_and_top5_are_those_of_the_reference() -> None:
    found = scored(LOGITS, NEAR, labels=LABELS)
    for name, most in (("top1", 1), ("top5", 5)):
        expected = [reference.top_k_accuracy_score(LABELS, form, k=most, labels=range(8)) for form in (LOGITS, NEAR)]
        assert values(found[name]) == pytest.approx(expected)


def test_top5_needs_more_than_five_classes() -> None:
    assert "top5" not in scored(LOGITS[:, :5], NEAR[:, :5], labels=LABELS % 5)


@pytest.mark.parametrize("labels", [LABELS, np.where(LABELS > 3, 2, LABELS)], ids=["all classes", "some classes"])
def test_f1_is_that_of_the_reference(labels: Array) -> None:
    known = np.unique(labels)
    expected = [
        reference.f1_score(labels, form.argmax(axis=1), labels=known, average="macro", zero_division=0)
        for form in (LOGITS, NEAR)
    ]
    assert values(scored(LOGITS, NEAR, labels=labels)["f1"]) == pytest.approx(expected)


def test_miou_is_that_of_the_reference() -> None:
    found = scored(MAP_SCORES, NEAR_MAPS, labels=MAPS)["miou"]
    answers = [form.argmax(axis=1).reshape(-1) for form in (MAP_SCORES, NEAR_MAPS)]
    by_class = [reference.jaccard_score(MAPS.reshape(-1), answer, average=None) for answer in answers]
    assert values(found) == pytest.approx([entry.mean() for entry in by_class])
    assert [entry.float32 for entry in found.classes] == pytest.approx(by_class[0])
    assert [entry.variant for entry in found.classes] == pytest.approx(by_class[1])


@pytest.mark.parametrize("ignored", [-1, -100, 255])
def test_ignored_pixels_count_for_nothing(ignored: int) -> None:
    kept = RNG.random(MAPS.shape) < 0.7
    found = scored(MAP_SCORES, NEAR_MAPS, labels=np.where(kept, MAPS, ignored))
    answers = [form.argmax(axis=1) for form in (MAP_SCORES, NEAR_MAPS)]
    expected = [reference.jaccard_score(MAPS[kept], answer[kept], average="macro") for answer in answers]
    assert values(found["miou"]) == pytest.approx(expected)
    shares = [(answers[0][row] == answers[1][row])[kept[row]].mean() for row in range(ROWS)]
    assert values(found["agreement"])[1] == pytest.approx(np.mean(shares))


def test_with_more_classes_255_is_one_of_them() -> None:
    labels, scores = np.full((2, 3), 255), np.zeros((2, 300, 3), np.float32)
    scores[:, 255] = 1
    assert values(scored(scores, scores, labels=labels)["miou"]) == [1, 1]


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_maps_may_be_answered_directly_or_with_the_classes_last(dtype: type) -> None:
    as_scores = scored(MAP_SCORES, NEAR_MAPS, labels=MAPS)
    ids = [form.argmax(axis=1).astype(dtype) for form in (MAP_SCORES, NEAR_MAPS)]
    assert values(scored(*ids, labels=MAPS)["miou"]) == values(as_scores["miou"])
    last = [np.moveaxis(form, 1, -1) for form in (MAP_SCORES, NEAR_MAPS)]
    assert values(scored(*last, labels=MAPS)["miou"]) == values(as_scores["miou"])


def test_errors_are_those_of_the_reference() -> None:
    targets = RNG.normal(0, 1, ROWS)
    forms = [(targets + RNG.normal(0, scale, ROWS)).astype(np.float32)[:, np.newaxis] for scale in (0.1, 0.3)]
    found = scored(*forms, labels=targets)
    assert values(found["mae"]) == pytest.approx([reference.mean_absolute_error(targets, form) for form in forms])
    expected = [reference.root_mean_squared_error(targets, form) for form in forms]
    assert values(found["rmse"]) == pytest.approx(expected)
    assert found["mae"].drop.value == pytest.approx(values(found["mae"])[1] - values(found["mae"])[0])


def test_psnr_is_its_definition_with_the_labels_range_as_peak() -> None:
    peak = IMAGES.max() - IMAGES.min()
    expected = [
        np.mean([10 * np.log10(peak**2 / np.mean((a - b) ** 2)) for a, b in zip(form, IMAGES, strict=True)])
        for form in (CLEAN, NOISY)
    ]
    found = scored(CLEAN, NOISY, labels=IMAGES)["psnr"]
    assert values(found) == pytest.approx(expected)
    assert found.drop.value == pytest.approx(expected[0] - expected[1])


def test_a_row_without_error_has_the_most_that_psnr_knows() -> None:
    exact = IMAGES.astype(np.float32)
    assert values(scored(exact, exact, labels=exact)["psnr"]) == [100, 100]


def slow_retrieval(before: Array, after: Array) -> float:
    """Compare the ten nearest rows of each row as sets."""
    near = [reference.pairwise.cosine_similarity(form) - 2 * np.eye(len(form)) for form in (before, after)]
    tens = [np.argsort(-form, axis=1)[:, :10] for form in near]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*tens, strict=True)]))


def test_retrieval_is_the_overlap_of_the_ten_nearest() -> None:
    assert values(scored(LOGITS, NEAR)["retrieval"]) == pytest.approx([1, slow_retrieval(LOGITS, NEAR)])


def test_retrieval_forgives_what_equal_rows_leave_open() -> None:
    twins = unit(np.repeat(RNG.normal(size=(3, 6)), 20, axis=0).astype(np.float32))
    shaken = unit((twins + RNG.normal(0, 1e-4, twins.shape)).astype(np.float32))
    assert recalls(twins, shaken).tolist() == [1] * 60


def test_retrieval_takes_rows_from_all_over_a_large_set() -> None:
    many = RNG.normal(size=(5000, 4)).astype(np.float32)
    found = scored(many, many, batch=33)["retrieval"]
    assert found.rows == 1667  # every third
    assert values(found) == [1, 1]


def test_fidelity_is_measured_against_a_perfect_float32() -> None:
    found = scored(LOGITS, NEAR)
    assert set(found) == {"agreement", "retrieval", "cosine", "sqnr", "kl"}
    same = np.mean(LOGITS.argmax(axis=1) == NEAR.argmax(axis=1))
    assert values(found["agreement"]) == [1, same]
    assert found["agreement"].drop.value == pytest.approx(1 - same)
    cosine = found["cosine"]
    assert cosine.drop.value == pytest.approx(1 - values(cosine)[1])
    assert cosine.drop.low == pytest.approx(1 - cosine.measured["form1"].high)
    ratio = np.sum((LOGITS - NEAR) ** 2.0) / np.sum(LOGITS**2.0)
    # the reference sums in float32: 720 terms leave an error of about 1e-6 of the sum
    assert found["sqnr"].drop.value == pytest.approx(10 * np.log10(1 + ratio), rel=1e-5)
    assert found["kl"].drop.value == values(found["kl"])[1]


def test_equal_forms_lose_nothing() -> None:
    for score in scored(LOGITS, LOGITS, labels=LABELS).values():
        assert score.drop.value == pytest.approx(0, abs=1e-12)
        assert score.drop.low <= 0 <= score.drop.high


def test_batches_do_not_change_a_score() -> None:
    whole, parts = (scored(LOGITS, NEAR, labels=LABELS, batch=size) for size in (ROWS, 7))
    for name, score in whole.items():
        assert values(score) == pytest.approx(values(parts[name]))
        assert (score.drop.low, score.drop.high) == pytest.approx((parts[name].drop.low, parts[name].drop.high))


def test_a_row_that_float32_cannot_answer_counts_for_nothing() -> None:
    broken = CLEAN.copy()
    broken[3] = np.nan
    found = scored(broken, NOISY, labels=IMAGES)
    kept = np.arange(ROWS) != 3
    assert values(found["mae"]) == pytest.approx(values(scored(CLEAN[kept], NOISY[kept], labels=IMAGES[kept])["mae"]))
    assert all(np.isfinite(values(score)).all() for score in found.values())


def test_no_score_comes_of_no_finite_answer() -> None:
    assert "mae" not in scored(np.full((5, 1), np.nan), np.ones((5, 1)), labels=np.ones(5))


MISFITS: dict[str, tuple[Array, Array]] = {
    "classes for an image": (CLEAN, LABELS),
    "maps for a classifier": (LOGITS, MAPS),
    "maps of another size": (MAP_SCORES, MAPS[:, :3]),
    "numbers for a classifier": (LOGITS, LABELS.astype(np.float64)),
    "images of another size": (CLEAN, IMAGES[..., :4]),
    "one score": (LOGITS[:, :1], LABELS % 2),
}


@pytest.mark.parametrize("case", MISFITS)
def test_labels_that_do_not_fit_are_used_by_no_metric(case: str) -> None:
    form, labels = MISFITS[case]
    assert {METRICS[name].labels for name in scored(form, form, labels=labels)} == {"none"}


def test_classes_may_be_answered_directly() -> None:
    ids = [form.argmax(axis=1) for form in (LOGITS, NEAR)]
    found, as_scores = scored(*ids, labels=LABELS), scored(LOGITS, NEAR, labels=LABELS)
    assert set(found) == {"top1", "f1", "agreement"}
    assert all(values(score) == values(as_scores[name]) for name, score in found.items())
    assert set(scored(*(form[:, np.newaxis] for form in ids))) == {"agreement"}


def test_one_class_alone_can_be_scored() -> None:
    found = scored(LOGITS, NEAR, labels=np.zeros(ROWS, np.int64))
    assert values(found["top1"]) == [np.mean(form.argmax(axis=1) == 0) for form in (LOGITS, NEAR)]
    assert found["f1"].rows == ROWS


def test_one_row_has_values_without_spread() -> None:
    for score in scored(LOGITS[:1], NEAR[:1], labels=LABELS[:1]).values():
        assert score.rows == 1
        assert score.drop.low <= score.drop.value <= score.drop.high


def test_rows_that_change_their_shape_are_compared_as_far_as_labels_allow() -> None:
    made, rows = Metrics(["float32", "int8"], rows=60), range(30)
    for size in (4, 6):
        images = RNG.normal(size=(30, 1, size, size))
        made.add(Answers([[images], [images + 0.1]], labels=None, rows=rows))
    assert {score.name for score in made.scores()} == {"cosine", "sqnr"}
    labelled = Metrics(["float32", "int8"], rows=60)
    labelled.add(Answers([[CLEAN[:5]], [NOISY[:5]]], labels=IMAGES[:5], rows=range(5)))
    with pytest.raises(DatasetUnfit, match="changes its shape from row to row"):
        labelled.add(Answers([[CLEAN[:5, :, :4]], [NOISY[:5, :, :4]]], labels=IMAGES[:5], rows=range(5)))


def test_maps_that_are_ignored_altogether_have_no_score() -> None:
    assert "miou" not in scored(MAP_SCORES, NEAR_MAPS, labels=np.full(MAPS.shape, 255))


def test_a_class_beyond_the_models_names_its_row() -> None:
    with pytest.raises(
        DatasetUnfit, match="Row 4 is labelled 8, but the model tells 8 classes apart: use labels 0 to 7"
    ):
        scored(LOGITS, NEAR, labels=np.where(np.arange(ROWS) == 4, 8, LABELS))
    labels = MAPS.copy()
    labels[6, 0, 0] = 5
    with pytest.raises(DatasetUnfit, match="map of row 6 has class 5, but the model tells 5 classes apart"):
        scored(MAP_SCORES, NEAR_MAPS, labels=labels)


@pytest.mark.parametrize("forms", [(LOGITS,), (MAP_SCORES,), (CLEAN,)], ids=["classes", "maps", "images"])
def test_float32_alone_has_the_metrics_of_its_labels(forms: Sequence[Array]) -> None:
    labels = {2: LABELS, 4: MAPS if forms[0].shape[1] == 5 else IMAGES}[forms[0].ndim]
    for score in scored(*forms, labels=labels).values():
        assert METRICS[score.name].labels != "none"
        assert score.drop.value == 0
