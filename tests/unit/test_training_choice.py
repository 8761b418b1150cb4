"""What is published of a training: never what is worse than its start."""

from dataclasses import replace
from typing import Any

import pytest

from app.domain.errors import ToolchainFailed
from app.domain.evidence import Interval, MetricScore
from app.domain.recipes import Qat
from app.domain.reports import Difference
from tests.unit.test_training_rows import OUTCOME
from workers.jobs.training.choice import choose, unmeasured, untrained
from workers.stage_records.measuring import ScoreResult

DISTILLED, LABELLED = Qat(), Qat(loss="cross_entropy")


def metric(name: str, *, start: float, trained: float) -> MetricScore:
    values = {"float32": 1.0, "ptq": start, "w4a8": trained}
    return MetricScore(
        name=name,
        rows=1000,
        measured={form: Interval(value=value, low=0, high=1) for form, value in values.items()},
        drop=Interval(value=0, low=0, high=0),
        p_value=None,
        method="",
    )


def returned(recipe: Qat, *metrics: MetricScore, **score: Any) -> str:
    return choose(ScoreResult(accuracy=None, fidelity={}, metrics=metrics, **score), recipe, variant="w4a8").returned


def test_what_agrees_more_with_float32_is_published_where_float32_taught() -> None:
    assert returned(DISTILLED, metric("agreement", start=0.97, trained=0.99)) == "trained"
    assert returned(DISTILLED, metric("agreement", start=0.99, trained=0.97)) == "start"


EQUAL = metric("agreement", start=0.99, trained=0.99)


def test_equals_are_the_start() -> None:
    assert returned(DISTILLED, EQUAL) == "start"
    assert returned(DISTILLED, EQUAL, metric("sqnr", start=30, trained=30)) == "start"


@pytest.mark.parametrize(
    ("first", "second"), [(("top1", 1), ("sqnr", -1)), (("sqnr", 1), ("kl", 1)), (("kl", -1), ("cosine", -1))]
)
@pytest.mark.parametrize("expected", ["trained", "start"])
def test_right_answers_and_then_closeness_to_float32_decide_a_tie(
    first: tuple[str, int], second: tuple[str, int], expected: str
) -> None:
    (name, sign), (other, against) = first, second
    step = sign if expected == "trained" else -sign
    scores = (metric(other, start=5, trained=5 + against), metric(name, start=5, trained=5 + step))
    assert returned(DISTILLED, EQUAL, *scores) == expected


NAN = float("nan")


@pytest.mark.parametrize(
    ("start", "trained", "expected"), [(0.9, NAN, "start"), (NAN, 0.9, "trained"), (NAN, NAN, "start")]
)
@pytest.mark.parametrize("name", ["agreement", "mae"])
def test_no_number_is_worse_than_any(name: str, start: float, trained: float, expected: str) -> None:
    recipe = DISTILLED if name == "agreement" else replace(LABELLED, loss="mse")
    assert returned(recipe, metric(name, start=start, trained=trained)) == expected


def test_outputs_that_are_no_classes_are_held_to_their_direction() -> None:
    assert returned(DISTILLED, metric("cosine", start=0.99, trained=0.98)) == "start"


def test_the_labels_metric_counts_where_labels_or_another_model_taught() -> None:
    scores = (metric("top1", start=0.90, trained=0.91), metric("agreement", start=0.99, trained=0.97))
    assert returned(LABELLED, *scores) == "trained"
    assert returned(replace(DISTILLED, teacher="large:1"), *scores) == "trained"
    assert returned(DISTILLED, *scores) == "start"


def test_a_metric_of_which_less_is_better_is_read_so() -> None:
    assert returned(replace(LABELLED, loss="mse"), metric("mae", start=0.1, trained=0.2)) == "start"


@pytest.mark.parametrize(("high", "expected"), [(-0.001, "start"), (0.001, "trained")])
def test_surely_fewer_right_answers_than_the_start_are_refused(high: float, expected: str) -> None:
    ahead = {"ptq": Difference(value=-0.01, low=-0.02, high=high)}
    assert returned(DISTILLED, metric("agreement", start=0.97, trained=0.99), ahead=ahead) == expected


def test_the_start_itself_is_published_where_no_step_was_better() -> None:
    choice = untrained(replace(OUTCOME, best_step=0))
    assert choice is not None
    assert choice.returned == "start"
    assert untrained(OUTCOME) is None


def test_the_sentence_names_both_numbers_and_the_rows() -> None:
    score = ScoreResult(accuracy=None, fidelity={}, metrics=(metric("agreement", start=0.974, trained=0.991),))
    assert choose(score, DISTILLED, variant="w4a8").why == (
        "On 1,000 evaluation rows agreement is 99.10% for the trained artifact and 97.40% for the start, so the "
        "trained artifact was published."
    )


def test_the_sentence_names_the_tie_and_what_decided_it() -> None:
    score = ScoreResult(accuracy=None, fidelity={}, metrics=(EQUAL, metric("sqnr", start=30, trained=28)))
    assert choose(score, DISTILLED, variant="w4a8").why == (
        "On 1,000 evaluation rows agreement is 99.00% for both, and sqnr is 28 dB for the trained artifact and 30 dB "
        "for the start, so the start was published."
    )


def test_an_artifact_that_does_not_run_gives_way_to_the_start() -> None:
    choice = unmeasured(ToolchainFailed("It answers NaN."))
    assert (choice.returned, choice.why.endswith("fails: It answers NaN.")) == ("start", True)
