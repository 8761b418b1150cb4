"""A report's chapter on training: on the page, in the terminal, in words."""

from dataclasses import replace
from typing import Any

import pytest

from app.client.report_table import cells, forms
from app.client.report_training import sparkline
from app.domain.recipes import Qat
from app.domain.reports import Report
from app.domain.training import Training, TrainingOutcome, TrainingPoint
from app.domain.training_facts import training_facts
from app.web import charts
from app.web.page import render
from tests.trained import RECIPE, trained_report, training
from tests.unit.test_cli_report import printed
from tests.unit.test_report_page import FULL, HOSTILE, read

REPORT = trained_report()


def facts(*, recipe: Qat = RECIPE, chapter: dict[str, Any] | None = None, **outcome: Any) -> dict[str, str]:
    plain = training()
    changed: Training = replace(plain, outcome=replace(plain.outcome, **outcome), **(chapter or {}))
    return dict(training_facts(changed, recipe))


def outcome_of(*points: TrainingPoint, **fields: Any) -> TrainingOutcome:
    return replace(training().outcome, points=points, **fields)


def point(step: int, score: float | None, loss: float | None = 0.5) -> TrainingPoint:
    return TrainingPoint(step=step, loss=loss, learning_rate=0.1, score=score)


def test_the_page_shows_float32_the_start_and_the_variant_side_by_side() -> None:
    text = read(REPORT).text
    assert "float32the original81.03" in text
    assert "ptqthe start: quantized, not trained77.12" in text
    assert "w4a8trained80.91" in text


@pytest.mark.parametrize(
    "words",
    [
        "KL divergence from the teacher at temperature 4, times its square, nats",
        "agreement on the held-out rows, %",
        "learning rate",
        ">step<",
    ],
)
def test_every_axis_says_what_it_is(words: str) -> None:
    assert words in render(REPORT)


def test_a_report_without_training_has_no_chapter_on_it() -> None:
    assert "<h2>Training</h2>" not in render(FULL)
    assert "began from" not in printed(FULL, width=200)


def test_the_page_names_the_rows_that_trained() -> None:
    text = read(REPORT).text
    assert "trainingcifar-train:11,800given" in text
    assert "held out of trainingcifar-train:1200held out" in text


def test_names_in_a_training_stay_text() -> None:
    assert REPORT.training is not None
    outcome = replace(REPORT.training.outcome, start=HOSTILE, teacher=HOSTILE, reason=HOSTILE)
    found = read(replace(REPORT, training=replace(REPORT.training, outcome=outcome, choice=HOSTILE)))
    assert not [tag for tag, _ in found.tags if tag == "script"]
    assert found.text.count(HOSTILE) >= 4


def test_the_loss_chart_rings_the_best_step_and_marks_where_training_was_resumed() -> None:
    drawn = charts.loss_chart(training().outcome, kind="loss")
    assert (drawn.count('class="ring"'), drawn.count('class="resumed"')) == (1, 1)
    assert "best: step 360" in drawn
    assert drawn.count('class="look held-out-loss"') == 21


def test_a_loss_that_ran_away_does_not_flatten_the_others() -> None:
    steady = [point(step, None, loss=1.0) for step in range(1, 100)]
    drawn = charts.loss_chart(
        outcome_of(*steady, point(100, None, loss=1e9), steps_done=100, best_step=100, resumed_at=()), kind="loss"
    )
    assert ">1<" in drawn
    assert "e+" not in drawn


def test_many_looks_are_drawn_without_dots() -> None:
    many = [point(step, 0.1) for step in range(100)]
    assert "look" not in charts.loss_chart(outcome_of(*many), kind="loss")


def test_an_agreement_that_never_changes_stays_on_a_scale_of_shares() -> None:
    always = tuple(replace(one, agreement=1.0) for one in training().outcome.points)
    drawn = charts.agreement_chart(outcome_of(*always))
    assert (">100<" in drawn, ">150<" in drawn) == (True, False)


def test_curves_of_nothing_are_empty() -> None:
    nothing = outcome_of(point(0, None, loss=None))
    assert charts.loss_chart(nothing, kind="loss") == ""
    assert charts.agreement_chart(nothing) == ""
    assert charts.rate_chart(outcome_of()) == ""


@pytest.mark.parametrize("steps", [1, 2, 7, 10_000_000])
def test_any_number_of_steps_is_drawn(steps: int) -> None:
    fields = {"steps": steps, "steps_done": steps, "best_step": steps, "resumed_at": ()}
    drawn = charts.loss_chart(outcome_of(point(0, 1.0, loss=None), point(steps, 0.0), **fields), kind="loss")
    assert "1000.0,220.0" in drawn or steps == 7  # the axis ends at 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("began from", "nncf ptq_static, 4-bit weights, adaround (held-out loss 0.12, agreement 93.50 %)"),
        ("objective", "distillation from float32 at temperature 4, without labels"),
        ("ended", "complete, after 400 of 400 steps"),
        ("best step", "360, held-out loss 0.02183"),
        ("artifact", "answers 199 of 200 held-out rows like the fake-quantized module"),
        ("resumed", "at step 150, from a checkpoint"),
        ("forecast", "2.67 min and 700 MB; it took 2.88 min and 655 MB"),
        ("on the wire", "274 kB a step from each process, 25.1 % of float32's 1.09 MB (compression int8)"),
    ],
)
def test_the_facts_are_sentences(name: str, words: str) -> None:
    assert facts()[name].startswith(words)


def test_what_did_not_happen_is_not_told() -> None:
    told = facts(resumed_at=(), forecast=None, wire=None, processes=1)
    assert {"resumed", "forecast", "on the wire"}.isdisjoint(told)
    assert "processes" not in told["trained"]


def test_an_early_end_says_why() -> None:
    early: dict[str, Any] = {"points": (), "steps_done": 40, "best_step": 36, "resumed_at": ()}
    told = facts(ended="diverged", reason="The loss rose to ten times the start's.", **early)
    assert told["ended"] == "diverged, after 40 of 400 steps: The loss rose to ten times the start's."


def test_a_start_that_training_never_beat_is_said() -> None:
    told = facts(chapter={"returned": "start", "choice": "It agrees on fewer rows."}, best_step=0)
    assert told["published"] == "the start, not the trained artifact. It agrees on fewer rows."
    assert told["best step"] == "0: no step was better than the start"


def test_a_trained_form_that_was_not_published_is_shown_beside_the_start() -> None:
    assert REPORT.training is not None
    metrics = tuple(replace(one, measured={**one.measured, "trained": one.measured["ptq"]}) for one in REPORT.metrics)
    report = replace(REPORT, training=replace(REPORT.training, returned="start"), metrics=metrics)
    assert "trainedtrained, not published" in read(report).text
    assert "w4a8the start, published" in read(report).text
    assert " trained " in printed(report, width=250)


def test_an_answer_that_is_no_class_has_a_loss_of_its_own_unit() -> None:
    assert REPORT.training is not None
    points = tuple(replace(one, agreement=None) for one in REPORT.training.outcome.points)
    outcome = replace(REPORT.training.outcome, points=points)
    page = render(replace(REPORT, training=replace(REPORT.training, outcome=outcome)))
    assert "share of the energy of the teacher" in page
    assert "agreement on the held-out rows" not in page


@pytest.mark.parametrize(
    ("recipe", "teacher", "words"),
    [
        (Qat(loss="cross_entropy"), None, "cross entropy, against the labels"),
        (Qat(teacher="large"), "large:2", "distillation from large:2 at temperature 4, without labels"),
        (Qat(loss="feature_distillation"), None, "feature distillation from float32, without labels"),
    ],
)
def test_the_loss_says_who_taught(recipe: Qat, teacher: str | None, words: str) -> None:
    assert facts(recipe=recipe, teacher=teacher)["objective"] == words


def test_the_start_is_a_form_of_its_own_whose_size_nobody_kept() -> None:
    assert forms(REPORT) == ["float32", "bfloat16", "ptq", "w4a8"]
    assert cells(REPORT)[2][3] == "-"


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_chapter_fits_every_terminal(width: int) -> None:
    lines = printed(REPORT, width=width).splitlines()
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("words", ["accuracy float32 81.03 %, ptq 77.12 %, w4a8 80.91 %", "0.12 to 0.02317", "█"])
def test_the_terminal_shows_forms_and_curves(words: str) -> None:
    assert words in " ".join(printed(REPORT, width=160).split())


def test_a_training_without_labels_shows_agreement_alone() -> None:
    unlabelled: Report = replace(REPORT, accuracy=None, metrics=())
    assert "accuracy " not in printed(unlabelled, width=160).split("Training")[1].split("loss")[0]
    assert "agreement with float32" in render(unlabelled)


def test_a_small_curve_goes_from_the_lowest_block_to_the_highest() -> None:
    assert sparkline([0.0, 1.0, 2.0, 7.0], most=10) == "▁▂▃█"
    assert sparkline([3.0, 3.0], most=10) == "▁▁"
    assert len(sparkline([float(n) for n in range(1000)], most=60)) == 60
