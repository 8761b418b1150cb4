"""Budgets are judged as far as the rows can tell, and the rows that would tell are counted."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.datasets import ArraySpec, DatasetFormat, DatasetManifest
from app.domain.errors import DatasetUnfit
from app.domain.evidence import ClassScore, Interval, MetricScore
from app.domain.fit import check_metric
from app.domain.intervals import Pairs, paired_difference, wilson
from app.domain.models import Upload
from app.domain.recipes import Budget
from app.domain.verdicts import (
    LEAST_ROWS,
    certifiable_drop,
    default_metric,
    judge,
    require_metric,
    rows_needed,
    unused_labels,
    worst_class,
)


def share(rows: int, *, lost: int, gained: int = 0, right: float = 0.8, name: str = "top1") -> MetricScore:
    """Return a score of which rows count wholly or not at all, with the interval that it has."""
    count = round(rows * right)
    pairs = Pairs(both=count - lost, only_variant=gained, only_float32=lost, neither=rows - count - gained)
    found = paired_difference(pairs)
    low, high = wilson(count, rows=rows)
    return MetricScore(
        name=name,
        rows=rows,
        measured={"float32": Interval(value=count / rows, low=low, high=high)},
        drop=Interval(value=-found.value, low=-found.high, high=-found.low),
        p_value=None,
        method="",
        changed=(lost, gained),
    )


def mean(low: float, value: float, high: float, *, rows: int = 400, name: str = "psnr") -> MetricScore:
    """Return a score of a mean."""
    drop = Interval(value=value, low=low, high=high)
    return MetricScore(name=name, rows=rows, measured={"float32": drop}, drop=drop, p_value=None, method="")


def verdict(score: MetricScore, max_drop: float, **limits: float) -> tuple[str, int | None, str]:
    found = judge(Budget(max_drop=max_drop, **limits), score, latency_ms=2.0, size_bytes=1000)  # type: ignore[arg-type]
    assert (found.drop, found.rows) == (score.drop, score.rows)
    return found.outcome, found.rows_needed, found.reason


def test_a_budget_is_kept_if_the_whole_interval_lies_within() -> None:
    outcome, needed, reason = verdict(share(10_000, lost=120, gained=110), 0.005)
    assert (outcome, needed) == ("kept", None)
    assert (
        reason == "top1 drops by 0.1 points on 10,000 rows (-0.199 to +0.399 points), within the budget of 0.5 points."
    )


def test_a_budget_is_missed_if_none_of_the_interval_lies_within() -> None:
    outcome, needed, reason = verdict(share(10_000, lost=320, gained=110), 0.005)
    assert (outcome, needed) == ("missed", None)
    assert reason.endswith("which breaks the budget of 0.5 points.")


def test_between_the_rows_do_not_suffice_and_it_says_how_many_would() -> None:
    outcome, needed, reason = verdict(share(300, lost=2, gained=2), 0.005)
    assert outcome == "not enough rows"
    assert needed is not None
    assert reason.startswith("300 rows cannot certify a drop of at most 0.5 points (the interval is -1.6")
    assert reason.endswith("points): about 2,300 rows would.")


def test_a_drop_that_breaks_the_budget_is_said_even_where_the_rows_cannot_tell() -> None:
    outcome, needed, reason = verdict(share(300, lost=5, gained=3), 0.005)
    assert (outcome, needed) == ("not enough rows", None)
    assert reason.endswith("and the drop that was seen, 0.667 points, breaks it.")


def test_a_budget_of_nothing_cannot_be_certified() -> None:
    outcome, needed, reason = verdict(share(300, lost=2, gained=2), 0.0)
    assert (outcome, needed) == ("not enough rows", None)
    assert reason.endswith("no number of rows would at the drop that was seen.")


def test_a_gain_keeps_even_a_budget_of_nothing() -> None:
    assert verdict(mean(-0.3, -0.2, -0.1), 0.0)[0] == "kept"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_latency_ms": 1.5}, "One row takes 2 ms, over the limit of 1.5 ms."),
        ({"max_size_bytes": 999}, "The artifact has 1,000 bytes, over the limit of 999."),
        ({"max_latency_ms": 2.0, "max_size_bytes": 1000}, "within the budget"),
    ],
)
def test_limits_count_whatever_the_metric_says(limits: dict[str, float], words: str) -> None:
    outcome, needed, reason = verdict(mean(-0.1, 0.0, 0.1), 0.5, **limits)
    assert (outcome, needed) == ("kept" if "within" in words else "missed", None)
    assert words in reason


def test_other_units_are_said_as_they_are() -> None:
    assert verdict(mean(0.1, 0.2, 0.3), 0.5)[2] == (
        "psnr drops by 0.2 dB on 400 rows (+0.1 to +0.3 dB), within the budget of 0.5 dB."
    )
    assert "at most 0.25 (the interval is +0.1 to +0.3)" in verdict(mean(0.1, 0.2, 0.3, name="mae"), 0.25)[2]


def test_few_rows_certify_no_mean() -> None:
    outcome, needed, _ = verdict(mean(-1e-9, 0.0, 1e-9, rows=LEAST_ROWS - 1), 0.5)
    assert (outcome, needed) == ("not enough rows", LEAST_ROWS)


def test_the_rows_for_a_mean_grow_with_the_square() -> None:
    # the half width is 0.1 on 400 rows; a margin of 0.05 takes a quarter of it squared: 1,600
    assert rows_needed(mean(-0.1, 0.0, 0.1), 0.05) == pytest.approx(1600, abs=1)


@given(lost=st.integers(0, 30), gained=st.integers(0, 30), max_drop=st.floats(0.001, 0.05))
def test_the_rows_that_are_needed_are_enough_and_one_less_is_not(lost: int, gained: int, max_drop: float) -> None:
    score = share(1000, lost=lost, gained=gained)
    needed = rows_needed(score, max_drop)
    if needed is None:
        assert score.drop.high <= max_drop or score.drop.value >= max_drop
        return
    shares = Pairs(
        both=0.8 - lost / 1000, only_variant=gained / 1000, only_float32=lost / 1000, neither=0.2 - gained / 1000
    )
    enough, too_few = (-paired_difference(shares.scaled(rows)).low for rows in (needed, needed - 1))
    assert enough <= max_drop + 1e-9
    assert too_few > max_drop - 1e-9


def test_the_rows_for_agreement_follow_its_own_interval() -> None:
    low, high = wilson(990, rows=1000)
    drop = Interval(value=0.01, low=1 - high, high=1 - low)
    one = Interval(value=1, low=1, high=1)
    score = MetricScore(
        name="agreement", rows=1000, measured={"float32": one}, drop=drop, p_value=None, method="", changed=(10, 0)
    )
    needed = rows_needed(score, 0.015)
    assert needed is not None
    assert 1 - wilson(needed * 0.99, rows=needed)[0] <= 0.015 < 1 - wilson((needed - 1) * 0.99, rows=needed - 1)[0]


def test_more_rows_certify_less() -> None:
    drops = [certifiable_drop(rows) for rows in (100, 1000, 10_000, 100_000)]
    assert drops == sorted(drops, reverse=True)
    # without a loss the limit is z·sqrt(changed / rows) in the long run
    assert certifiable_drop(100_000, changed=0.02) == pytest.approx(1.96 * (0.02 / 100_000) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("available", "chosen"),
    [
        (("cosine", "agreement", "top1"), "top1"),
        (("cosine", "miou", "agreement"), "miou"),
        (("mae", "rmse", "psnr", "cosine"), "psnr"),
        (("mae", "rmse", "cosine"), "mae"),
        (("cosine", "kl", "agreement"), "agreement"),
        (("sqnr", "cosine"), "cosine"),
        (("sqnr",), None),
    ],
)
def test_a_budget_without_a_metric_takes_the_labels_first(available: Sequence[str], chosen: str | None) -> None:
    found = default_metric([mean(0, 0, 0, name=name) for name in available])
    assert (found.name if found else None) == chosen


UPLOAD = Upload(
    name="d", version=1, file="d", size_bytes=1, sha256="0" * 64, created_at=datetime.now(UTC), job="0" * 32
)


def dataset(labels: ArraySpec | None = None, *, labelled: bool = False) -> DatasetManifest:
    return DatasetManifest(
        name="d",
        version=1,
        format=DatasetFormat.NPZ,
        upload=UPLOAD,
        rows=3,
        arrays=(),
        labelled=labelled,
        classes=(),
        imported_at=UPLOAD.created_at,
        labels=labels,
    )


def test_a_metric_without_its_labels_is_refused_with_another_one() -> None:
    words = "metric top1 needs one class label per row; dataset 'd' has none: send labels, or take agreement"
    with pytest.raises(DatasetUnfit, match=words):
        require_metric("top1", ("cosine", "agreement"), dataset="d", labels="none")
    with pytest.raises(DatasetUnfit, match=r"retrieval does not fit the model's first output.*take cosine"):
        require_metric("retrieval", ("cosine",), dataset="d", labels="none")
    require_metric("top1", ("top1",), dataset="d", labels="class")


def test_the_kind_of_labels_is_checked_before_any_work() -> None:
    maps = ArraySpec(name="labels", dtype="uint8", row_shape=(4, 4))
    check_metric("miou", dataset(maps, labelled=True))
    check_metric("cosine", dataset())
    check_metric("top1", dataset(labelled=True))  # a manifest from before labels were described
    with pytest.raises(DatasetUnfit, match="needs one class label per row; dataset 'd' has maps of classes"):
        check_metric("top1", dataset(maps, labelled=True))
    with pytest.raises(DatasetUnfit, match="take agreement or cosine"):
        check_metric("psnr", dataset())


def test_labels_that_nothing_used_are_mentioned() -> None:
    assert unused_labels("class", [mean(0, 0, 0, name="top1")]) is None
    assert unused_labels("none", []) is None
    assert "maps of classes" in (unused_labels("class_map", [mean(0, 0, 0, name="cosine")]) or "")


def test_the_worst_class_lost_most_and_of_several_has_most_rows() -> None:
    def entry(name: str, rows: int, variant: float) -> ClassScore:
        return ClassScore(name=name, rows=rows, float32=0.5, variant=variant)

    found = worst_class([entry("a", 5, 0.4), entry("b", 9, 0.4), entry("c", 99, 0.6)])
    assert found is not None
    assert found.name == "b"
    assert worst_class([entry("c", 99, 0.6)]) is None
