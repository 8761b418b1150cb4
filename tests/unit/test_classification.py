"""The best classes of every row."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.api.arrays import Array
from app.api.classification import (
    MOST_CLASSES,
    classification_strings,
    top_k,
    wanted_classification,
)
from app.domain.errors import RequestInvalid, SignatureMismatch

SCORES = np.array([[0.1, 0.5, 0.4], [3.0, -1.0, 3.0]], np.float32)
LABELS = ("cat", "dog: small", "eel")

tables = arrays.arrays(
    st.sampled_from([np.float32, np.int8, np.uint8, np.int64, np.float16]),
    st.tuples(st.integers(0, 3), st.integers(1, 40)),
)


def indices(scores: Array, k: int) -> list[list[int]]:
    return [[found.index for found in row] for row in top_k(scores, k=k, labels=None)]


def test_the_highest_come_first_with_score_and_label() -> None:
    best, second = top_k(SCORES[:1], k=2, labels=LABELS)[0]
    assert (best.index, best.label, best.score) == (1, "dog: small", 0.5)
    assert (second.index, second.label) == (2, "eel")


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    assert indices(SCORES, 3) == [[1, 2, 0], [0, 2, 1]]
    assert indices(np.zeros((1, 50), np.float32), 3) == [[0, 1, 2]]


def test_what_is_not_a_number_comes_last() -> None:
    scores = np.array([[math.nan, -math.inf, 1.0, math.nan, math.inf]])
    assert indices(scores, 5) == [[4, 2, 1, 0, 3]]
    assert indices(scores, 4) == [[4, 2, 1, 0]]


@given(tables, st.integers(1, 45))
def test_the_order_is_that_of_a_plain_sort(scores: Array, k: int) -> None:
    def rank(row: Array, index: int) -> tuple[bool, float, int]:
        value = row[index].item()
        return (math.isnan(value), 0 if math.isnan(value) else -value, index)

    expected = [sorted(range(len(row)), key=partial(rank, row))[:k] for row in scores]
    assert indices(scores, k) == expected


def test_more_classes_than_there_are_means_all() -> None:
    assert [len(row) for row in top_k(SCORES, k=10, labels=LABELS)] == [3, 3]


def test_without_labels_there_are_no_names() -> None:
    assert {found.label for row in top_k(SCORES, k=3, labels=None) for found in row} == {None}


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((1, 3, 2)), np.array([["a", "b"]])])
def test_an_output_that_is_no_table_of_numbers_has_no_highest(scores: Array) -> None:
    with pytest.raises(RequestInvalid, match="rows, classes"):
        top_k(scores, k=1, labels=None)


def test_labels_that_are_fewer_than_the_classes_are_said_so() -> None:
    with pytest.raises(SignatureMismatch, match="2 labels, but its output has 3 classes"):
        top_k(SCORES, k=1, labels=LABELS[:2])


def test_strings_are_written_as_triton_does() -> None:
    assert classification_strings(SCORES[:1], k=2, labels=LABELS) == [["0.500000:1:dog: small", "0.400000:2:eel"]]
    assert classification_strings(np.array([[7, 9]], np.int8), k=1, labels=None) == [["9:1"]]


@pytest.mark.parametrize("wanted", [0, True, 1.0, "3", MOST_CLASSES + 1, [1]])
def test_a_parameter_that_makes_no_sense_is_refused(wanted: object) -> None:
    with pytest.raises(RequestInvalid, match="classification"):
        wanted_classification({"classification": wanted})


def test_a_parameter_says_how_many_are_wanted() -> None:
    assert wanted_classification({"classification": 3}) == 3
    assert wanted_classification({"binary_data": True}) is None
