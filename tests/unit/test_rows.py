"""Which rows calibrate and which score."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import DatasetUnfit
from app.domain.recipes import TECHNIQUES, LearnsFromRows, PtqStatic
from app.domain.reports import Environment, Latency, Report, Size
from tests.unit.test_domain_records import DATASET, NOW
from workers.jobs.rows import (
    LEAST_SPARE,
    Chosen,
    calibrated_by,
    choose_calibration,
    choose_evaluation,
    choose_selection,
)

LATENCY = Latency(p50_ms=1, p95_ms=1, p99_ms=1, speedup=1, runs=1, rows_per_second=1, batch_size=1)
REPORT = Report(
    model="m",
    version=1,
    variant="int8",
    artifact_sha256="0" * 64,
    recipe=None,
    size=Size(bytes=1, float32_bytes=4, ratio=0.25),
    calibration=None,
    evaluation=None,
    accuracy=None,
    fidelity={},
    latency={"float32": LATENCY, "int8": LATENCY},
    memory={},
    kernels={},
    conversion=None,
    environment=Environment(cpu="", instructions=(), cores=1, memory_bytes=1, kernel="", libraries={}),
    notes=(),
    created_at=NOW,
)


@given(total=st.integers(2, 500), rows=st.integers(1, 600), seed=st.integers(0, 2**32 - 1))
def test_no_row_both_calibrates_and_scores(total: int, rows: int, seed: int) -> None:
    dataset = replace(DATASET, rows=total)
    calibration = choose_calibration(dataset, rows=rows, seed=seed, hold_out=True)
    evaluation = choose_evaluation(dataset, calibration=calibration, given=False)
    assert set(calibration.rows).isdisjoint(evaluation.rows)
    assert sorted((*calibration.rows, *evaluation.rows)) == list(range(total))
    assert len(calibration.rows) <= rows


def test_the_same_seed_picks_the_same_rows() -> None:
    dataset = replace(DATASET, rows=1000)
    first, again, other = (choose_calibration(dataset, rows=300, seed=seed, hold_out=False) for seed in (7, 7, 8))
    assert first == again
    assert first.rows != other.rows


def test_the_calibration_rows_never_score_even_when_the_same_file_is_named_twice() -> None:
    calibration = choose_calibration(DATASET, rows=4, seed=0, hold_out=False)
    copy = replace(DATASET, name="copy")
    assert set(choose_evaluation(copy, calibration=calibration, given=True).rows).isdisjoint(calibration.rows)


def test_one_row_cannot_do_both() -> None:
    with pytest.raises(DatasetUnfit, match="cannot both calibrate and score"):
        choose_calibration(replace(DATASET, rows=1), rows=1, seed=0, hold_out=True)


def test_a_dataset_used_up_by_calibration_cannot_score() -> None:
    calibration = choose_calibration(DATASET, rows=10, seed=0, hold_out=False)
    with pytest.raises(DatasetUnfit, match="none is left to score"):
        choose_evaluation(DATASET, calibration=calibration, given=True)


def test_the_rows_that_calibrated_a_variant_do_not_evaluate_it_later() -> None:
    dataset, recipe = replace(DATASET, rows=100), PtqStatic(calibration_rows=60, seed=5)
    for hold_out in (False, True):
        calibration = choose_calibration(dataset, rows=60, seed=5, hold_out=hold_out)
        report = replace(REPORT, recipe=recipe, calibration=calibration.use)
        assert calibrated_by(report, dataset) == calibration
        assert calibrated_by(report, replace(dataset, version=2)) is None


def test_a_report_is_renamed_whole() -> None:
    renamed = REPORT.renamed("int8-2")
    assert (renamed.variant, list(renamed.latency), list(renamed.memory)) == ("int8-2", ["float32", "int8-2"], [])
    assert renamed.renamed("int8") == REPORT


def _parted(*, calibration: int, spare: int, evaluation: int) -> tuple[Chosen, Chosen, Chosen]:
    learning = replace(
        DATASET, name="learning", rows=calibration + spare, upload=replace(DATASET.upload, sha256="1" * 64)
    )
    scoring = replace(DATASET, name="scoring", rows=evaluation)
    learnt = choose_calibration(learning, rows=calibration, seed=0, hold_out=False)
    given = choose_evaluation(scoring, calibration=learnt, given=True)
    return learnt, *choose_selection(given, calibration=learnt, seed=0)


def test_a_search_chooses_by_rows_that_calibration_left_over_where_there_are_enough() -> None:
    learnt, selection, final = _parted(calibration=100, spare=LEAST_SPARE, evaluation=50)
    assert (selection.use.dataset, selection.use.source, selection.use.rows) == ("learning:1", "held_out", LEAST_SPARE)
    assert set(selection.rows).isdisjoint(learnt.rows)
    assert len(final.rows) == 50


def test_a_search_parts_the_evaluation_rows_where_there_are_not() -> None:
    _, selection, final = _parted(calibration=100, spare=LEAST_SPARE - 1, evaluation=51)
    assert (selection.use.dataset, selection.use.source) == ("scoring:1", "given")
    assert (len(selection.rows), len(final.rows)) == (25, 26)
    assert set(selection.rows).isdisjoint(final.rows)


def test_a_search_with_one_row_to_score_is_refused() -> None:
    with pytest.raises(DatasetUnfit, match="single row"):
        _parted(calibration=10, spare=0, evaluation=1)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_technique_that_calibrates_says_with_which_rows(technique: str) -> None:
    recipe = TECHNIQUES[technique]()
    assert isinstance(recipe, LearnsFromRows) or not recipe.needs_calibration
