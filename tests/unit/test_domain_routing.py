"""Routes, and how several variants share the requests."""

import math
from collections import Counter
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.catalogue.records import from_json, to_json
from app.domain.errors import NameInvalid, RequestInvalid
from app.domain.routing import LARGEST_WEIGHT, MOST_WEIGHTS, Route, Split

OLD = b'{"number":1,"model":"net","version":2,"variant":"int8","created_at":"2026-01-01T00:00:00Z"}'
KEYS = [f"user-{number}" for number in range(4000)]
# Seven standard deviations: by chance that happens once in 4e11 comparisons.
SIGMAS = 7

weights = st.dictionaries(
    st.sampled_from(["bfloat16", "float32", "int8", "int4"]), st.floats(0.1, 10), min_size=1, max_size=4
)


def route(**fields: Any) -> Route:
    return Route(number=1, model="net", version=1, created_at=datetime(2026, 1, 1, tzinfo=UTC), **fields)


def tolerance(share: float) -> float:
    """How far a count may lie from what is expected: the binomial distribution's deviation, many times."""
    return SIGMAS * math.sqrt(len(KEYS) * share * (1 - share)) + 1


def check_proportions(chosen: Counter[str], wanted: dict[str, float]) -> None:
    total = sum(wanted.values())
    for name, weight in wanted.items():
        share = weight / total
        assert abs(chosen[name] - share * len(KEYS)) <= tolerance(share)


def test_a_record_of_before_there_were_weights_is_still_read() -> None:
    read = from_json(Route, OLD, path="x")
    assert (read.variant, read.weights, read.by, read.shares) == ("int8", None, None, {"int8": 1.0})


def test_a_route_is_written_and_read_unchanged() -> None:
    made = route(weights={"float32": 1, "int8": 3}, by="ann", note="a canary")
    assert from_json(Route, to_json(made), path="x") == made
    assert hash(made) == hash(from_json(Route, to_json(made), path="x"))


def test_weights_are_kept_as_given_and_normalised_on_use() -> None:
    made = route(weights={"int8": 3, "float32": 1, "int4": 0})
    assert made.weights == {"int8": 3, "float32": 1, "int4": 0}
    assert made.shares == {"float32": 0.25, "int8": 0.75}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"variant": "int8", "weights": {"int8": 1.0}},
        {"weights": {}},
        {"weights": {"int8": 0.0}},
        {"weights": {"int8": -0.1, "float32": 1}},
        {"weights": {"int8": math.nan}},
        {"weights": {"int8": math.inf}},
        {"weights": {"int8": LARGEST_WEIGHT * 2}},
        {"weights": {f"v{number}": 1.0 for number in range(MOST_WEIGHTS + 1)}},
        {"variant": "int8", "by": ""},
        {"variant": "int8", "by": "a\nb"},
        {"variant": "int8", "by": "a" * 201},
        {"variant": "int8", "note": "a" * 1001},
        {"variant": "int8", "note": "\ud800"},
    ],
)
def test_a_route_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestInvalid):
        route(**fields)


def test_weights_of_a_name_that_cannot_be_are_refused() -> None:
    with pytest.raises(NameInvalid):
        route(weights={"../int8": 1.0})


@settings(max_examples=25, deadline=None)
@given(weights, st.integers(0, 2**32))
def test_requests_are_shared_in_proportion_by_chance(wanted: dict[str, float], seed: int) -> None:
    split, random = Split(wanted, salt="net"), Random(seed)
    check_proportions(Counter(split.at_random(random) for _ in KEYS), wanted)


@settings(max_examples=25, deadline=None)
@given(weights)
def test_keys_are_shared_in_proportion(wanted: dict[str, float]) -> None:
    split = Split(wanted, salt="net")
    check_proportions(Counter(split.for_key(key) for key in KEYS), wanted)


@given(weights, st.text(min_size=1, max_size=256).filter(lambda key: key.isprintable()), st.randoms())
def test_a_key_has_its_name_whatever_the_order_and_the_sum_of_weights(
    wanted: dict[str, float], key: str, random: Random
) -> None:
    names = list(wanted)
    random.shuffle(names)
    again = {name: wanted[name] * 4 for name in names}
    assert Split(wanted, salt="net").for_key(key) == Split(again, salt="net").for_key(key)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_change_between_two_moves_only_the_difference_and_one_way(before: float, after: float) -> None:
    old, new = (Split({"float32": 1 - share, "int8": share}, salt="net") for share in (before, after))
    moved = Counter((old.for_key(key), new.for_key(key)) for key in KEYS)
    share = abs(after - before)
    away = ("int8", "float32") if after > before else ("float32", "int8")
    assert moved[away] == 0
    assert abs(moved[away[::-1]] - share * len(KEYS)) <= tolerance(share)


def test_a_newcomer_takes_keys_and_no_others_change_places() -> None:
    old, new = Split({"float32": 1, "int8": 8}, salt="net"), Split({"bfloat16": 1, "float32": 1, "int8": 8}, salt="net")
    assert {new.for_key(key) for key in KEYS if new.for_key(key) != old.for_key(key)} == {"bfloat16"}


def test_a_key_means_another_choice_for_another_model() -> None:
    one, other = (Split({"float32": 1, "int8": 1}, salt=model) for model in ("one", "other"))
    assert {(one.for_key(key), other.for_key(key)) for key in KEYS} == {
        (left, right) for left in ("float32", "int8") for right in ("float32", "int8")
    }


def test_a_key_has_the_same_name_in_every_release() -> None:
    split = Split({"float32": 0.5, "int8": 0.5}, salt="net")
    letters = ["f" if split.for_key(key) == "float32" else "i" for key in "abcdef"]
    assert "".join(letters) == "fiiiff"
