"""The knapsack that picks layers, against trying every set."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from workers.jobs.search.knapsack import STEPS, Item, fill, reach

ITEMS = st.lists(st.tuples(st.integers(0, 50), st.integers(-5, 60)), max_size=9).map(
    lambda pairs: [Item(name=str(number), value=value, cost=cost) for number, (value, cost) in enumerate(pairs)]
)


def every_set(items: list[Item]) -> list[tuple[Item, ...]]:
    return [chosen for size in range(len(items) + 1) for chosen in combinations(items, size)]


def paid(items: list[Item], names: frozenset[str]) -> int:
    return sum(max(0, item.cost) for item in items if item.name in names)


def worth(items: list[Item], names: frozenset[str]) -> float:
    return sum(item.value for item in items if item.name in names)


@given(items=ITEMS, capacity=st.integers(0, 200))
def test_no_set_within_the_capacity_is_worth_more(items: list[Item], capacity: int) -> None:
    names = fill(items, capacity=capacity)
    fitting = [one for one in every_set(items) if sum(max(0, item.cost) for item in one) <= capacity]
    assert paid(items, names) <= capacity
    assert worth(items, names) == max(sum(item.value for item in one) for one in fitting)


@given(items=ITEMS, wanted=st.integers(0, 300))
def test_no_set_of_the_wanted_worth_is_cheaper(items: list[Item], wanted: int) -> None:
    names = reach(items, value=wanted)
    good = [one for one in every_set(items) if sum(item.value for item in one) >= wanted]
    if names is None:
        assert not good
        return
    assert worth(items, names) >= wanted
    assert paid(items, names) == min(sum(max(0, item.cost) for item in one) for one in good)


def test_a_capacity_beyond_the_steps_is_kept_all_the_same() -> None:
    items = [Item(name=str(number), value=number + 1, cost=7_919 * (number + 1)) for number in range(12)]
    names = fill(items, capacity=30 * STEPS)
    assert 0 < paid(items, names) <= 30 * STEPS


def test_a_layer_that_is_faster_in_float_is_always_kept_there() -> None:
    items = [Item(name="free", value=0.1, cost=-3), Item(name="dear", value=9, cost=100)]
    assert fill(items, capacity=0) == {"free"}
