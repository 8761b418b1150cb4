"""Joining requests' rows and splitting the answer loses, adds and exchanges none."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.runners.batches import Joiner, split

Request = dict[str, npt.NDArray[np.float32]]


@st.composite
def batches(draw: st.DrawFn) -> tuple[dict[str, int], list[list[Request]]]:
    """Draw tensors with an axis of rows each, and batches of requests of any numbers of rows for them."""
    shapes = {}
    axes = {}
    for name in (f"t{number}" for number in range(draw(st.integers(1, 4)))):
        shapes[name] = draw(st.lists(st.integers(0, 4), max_size=3))
        axes[name] = draw(st.integers(0, len(shapes[name])))
    counts = draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=5), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def request(rows: int) -> Request:
        return {
            name: rng.random([*shape[: axes[name]], rows, *shape[axes[name] :]], np.float32)
            for name, shape in shapes.items()
        }

    return axes, [[request(rows) for rows in batch] for batch in counts]


def rows_of(request: Request, axes: dict[str, int]) -> int:
    name, axis = next(iter(axes.items()))
    return int(request[name].shape[axis])


@given(batches())
@settings(deadline=None)
def test_every_request_gets_its_own_rows_back(drawn: tuple[dict[str, int], list[list[Request]]]) -> None:
    axes, every = drawn
    joiner = Joiner(axes)  # one for all batches, as in a lane: what it keeps must not show
    for requests in every:
        joined = joiner.join(requests)
        shares = split(joined, [rows_of(request, axes) for request in requests], axes)
        for request, share in zip(requests, shares, strict=True):
            assert share.keys() == request.keys()
            for name, array in request.items():
                np.testing.assert_array_equal(share[name], array)


@given(batches())
@settings(deadline=None)
def test_joined_rows_lie_in_the_order_of_the_requests(drawn: tuple[dict[str, int], list[list[Request]]]) -> None:
    axes, every = drawn
    for requests in every:
        for name, joined in Joiner(axes).join(requests).items():
            expected = np.concatenate([request[name] for request in requests], axis=axes[name])
            np.testing.assert_array_equal(joined, expected)


def test_memory_is_kept_from_batch_to_batch() -> None:
    joiner, x = Joiner({"x": 0}), np.ones((1, 3), np.float32)
    first = joiner.join([{"x": x}, {"x": x}])["x"]
    second = joiner.join([{"x": 2 * x}, {"x": 3 * x}])["x"]
    assert np.shares_memory(first, second)


def test_the_dtype_of_another_batch_does_not_stay() -> None:
    joiner = Joiner({"x": 0})
    joiner.join([{"x": np.ones((1, 3), np.uint8)}] * 2)
    assert joiner.join([{"x": np.full((1, 3), 0.5, np.float32)}] * 2)["x"].dtype == np.float32


def test_one_request_is_not_copied() -> None:
    x = np.ones((2, 3), np.float32)
    assert Joiner({"x": 0}).join([{"x": x}])["x"] is x


def test_an_answer_of_another_number_of_rows_is_not_split() -> None:
    with pytest.raises(ValueError, match="'y' has 3 rows for a batch of 4"):
        split({"y": np.ones((3, 2))}, [1, 3], {"y": 0})
