"""Which rows train, which choose the step, which calibrate, and which score: never a row that trains."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.datasets import DatasetManifest
from app.domain.errors import DatasetUnfit
from app.domain.recipes import Qat
from app.domain.reports import Report
from app.domain.training import Training, TrainingOutcome
from tests.unit.test_domain_records import DATASET
from tests.unit.test_rows import REPORT
from workers.jobs.rows import choose_calibration
from workers.jobs.training.overlap import judged
from workers.jobs.training.rows import TrainingRows, check_labels, choose_rows, learnt_by, part, together
from workers.stage_records.training import OverlapResult

RECIPE = Qat(batch_size=8, calibration_rows=20)
OUTCOME = TrainingOutcome(
    start="s",
    starts=(),
    teacher=None,
    parameters=1,
    points=(),
    steps=1,
    steps_done=1,
    best_step=1,
    ended="complete",
    reason=None,
    seconds=1.0,
    rows_per_second=1.0,
    processes=1,
    resumed_at=(),
    checked_rows=1,
    checked_same=1,
)


def dataset(name: str, *, rows: int = 200) -> DatasetManifest:
    upload = replace(DATASET.upload, sha256=name[0] * 64)
    return replace(DATASET, name=name, rows=rows, upload=upload)


TRAIN, SCORE, CALIBRATE = dataset("a-train"), dataset("b-score"), dataset("c-calibrate")


def test_every_row_trains_or_is_held_out_where_another_dataset_scores() -> None:
    rows = choose_rows(RECIPE, calibration=None, training=TRAIN, evaluation=SCORE)
    assert sorted((*rows.training.rows, *rows.held_out.rows)) == list(range(200))
    assert len(rows.held_out.rows) == 20
    assert rows.evaluation.dataset == SCORE


def test_rows_that_calibrate_are_rows_that_train() -> None:
    rows = choose_rows(RECIPE, calibration=None, training=TRAIN, evaluation=SCORE)
    assert len(rows.calibration.rows) == 20
    assert set(rows.calibration.rows) <= set(rows.training.rows)


def test_another_dataset_calibrates_if_one_is_named() -> None:
    rows = choose_rows(RECIPE, calibration=CALIBRATE, training=TRAIN, evaluation=SCORE)
    assert (rows.calibration.dataset, rows.training.dataset) == (CALIBRATE, TRAIN)


@given(rows=st.integers(40, 500), held_out=st.floats(0.01, 0.5), seed=st.integers(0, 2**32 - 1))
def test_no_row_has_two_of_the_three_parts_without_an_evaluation_dataset(rows: int, held_out: float, seed: int) -> None:
    recipe = replace(RECIPE, held_out=held_out, seed=seed)
    found = choose_rows(recipe, calibration=None, training=dataset("a", rows=rows), evaluation=None)
    parts = [set(each.rows) for each in (found.training, found.held_out, found.evaluation)]
    assert set.union(*parts) == set(range(rows))
    assert sum(map(len, parts)) == rows
    assert min(map(len, parts)) >= 1


def test_what_calibration_leaves_over_scores_where_another_dataset_trains() -> None:
    rows = choose_rows(RECIPE, calibration=CALIBRATE, training=TRAIN, evaluation=None)
    assert rows.evaluation.dataset == CALIBRATE
    assert set(rows.evaluation.rows).isdisjoint(rows.calibration.rows)


def test_the_same_seed_holds_out_the_same_rows() -> None:
    first, again = (choose_rows(RECIPE, calibration=None, training=TRAIN, evaluation=SCORE) for _ in range(2))
    other = choose_rows(replace(RECIPE, seed=1), calibration=None, training=TRAIN, evaluation=SCORE)
    assert first == again
    assert first.held_out.rows != other.held_out.rows


def test_the_same_file_under_another_name_cannot_score() -> None:
    with pytest.raises(DatasetUnfit, match="'a-train' and 'copy' are the same file"):
        choose_rows(RECIPE, calibration=None, training=TRAIN, evaluation=replace(TRAIN, name="copy"))


def test_fewer_rows_than_a_batch_do_not_train() -> None:
    with pytest.raises(DatasetUnfit, match="7 are left to train, fewer than a batch of 8"):
        choose_rows(RECIPE, calibration=None, training=dataset("a", rows=8), evaluation=SCORE)


def test_a_loss_on_labels_needs_labels_of_its_kind() -> None:
    with pytest.raises(DatasetUnfit, match="needs labels of the kind 'class'"):
        check_labels(replace(RECIPE, loss="cross_entropy"), replace(TRAIN, labelled=False, labels=None))
    check_labels(RECIPE, replace(TRAIN, labelled=False, labels=None))


@pytest.mark.parametrize("evaluation", [SCORE, None])
def test_no_row_that_trained_a_variant_evaluates_it_later(evaluation: DatasetManifest | None) -> None:
    rows = choose_rows(RECIPE, calibration=None, training=TRAIN, evaluation=evaluation)
    learnt = learnt_by(report_of(rows), TRAIN)
    assert learnt is not None
    assert set(learnt.rows) == {*rows.training.rows, *rows.held_out.rows}
    assert learnt_by(report_of(rows), replace(TRAIN, version=2)) is None


def test_rows_that_trained_in_a_search_are_those_that_calibrated() -> None:
    calibration = choose_calibration(TRAIN, rows=20, seed=0, hold_out=True)
    training, held_out = part(calibration, RECIPE)
    rows = TrainingRows(calibration=calibration, training=training, held_out=held_out, evaluation=calibration)
    assert together(training, held_out).rows == calibration.rows
    assert learnt_by(report_of(rows), TRAIN) == calibration


def test_a_single_shared_row_of_many_is_a_finding_and_more_than_a_hundredth_is_refused() -> None:
    (finding,) = judged(OverlapResult(count=1, rows=(7,)), rows=100)
    assert (finding.code, finding.rows) == ("training_in_evaluation", (7,))
    assert judged(OverlapResult(count=0, rows=()), rows=100) == ()
    with pytest.raises(DatasetUnfit, match=r"2 of the 100 evaluation rows are training rows .*\(7, 8\)"):
        judged(OverlapResult(count=2, rows=(7, 8)), rows=100)


def report_of(rows: TrainingRows) -> Report:
    training = Training(
        outcome=OUTCOME, rows=rows.training.use, held_out=rows.held_out.use, returned="trained", choice="."
    )
    return replace(REPORT, recipe=RECIPE, calibration=rows.calibration.use, training=training)
