"""The 0/1 knapsack, by dynamic programming: which layers to keep in float for the time that may be spent on it."""

from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 10_000
"""Finest division of a capacity; costs are rounded up to it, so that a limit always holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One layer: `value` is what keeping it takes away of the loss, at least 0; `cost` is in whole microseconds."""

    name: str
    value: float
    cost: int


def fill(items: Sequence[Item], *, capacity: int) -> frozenset[str]:
    """Return the names of the set of most value whose costs add up to at most `capacity`.

    Kellerer, Pferschy and Pisinger, Knapsack Problems (2004), section 2.3. Exact for capacities up to `STEPS`; beyond,
    for costs rounded up to a `STEPS`th of it. What costs nothing, or less, is always in; what is worth nothing, never.
    """
    free = frozenset(item.name for item in items if item.cost <= 0 and item.value > 0)
    table = _Table([item for item in items if item.cost > 0 and item.value > 0], capacity=max(0, capacity))
    return free | table.best(table.steps)


def reach(items: Sequence[Item], *, value: float) -> frozenset[str] | None:
    """Return the names of the cheapest set worth at least `value`; None if not even all of them are."""
    free = [item for item in items if item.cost <= 0 and item.value > 0]
    paid = [item for item in items if item.cost > 0 and item.value > 0]
    wanted = value - sum(item.value for item in free)
    whole = sum(item.cost for item in paid)
    table = _Table(paid, capacity=whole if whole <= STEPS else 2 * whole)  # room for every cost to be rounded up
    for step, worth in enumerate(table.worth):
        if worth >= wanted:
            return frozenset(item.name for item in free) | table.best(step)
    return None


class _Table:
    """The table of the best worth at every whole step up to a capacity, and what was taken for it."""

    def __init__(self, items: Sequence[Item], *, capacity: int) -> None:
        unit = max(1, -(-capacity // STEPS))
        self.steps = capacity // unit
        self._items = [(item, -(-item.cost // unit)) for item in items]
        self.steps = min(self.steps, sum(cost for _, cost in self._items))  # beyond that, everything fits
        self.worth = [0.0] * (self.steps + 1)
        self._taken = [self._add(item.value, cost) for item, cost in self._items]

    def _add(self, value: float, cost: int) -> bytearray:
        taken = bytearray(self.steps + 1)
        for step in range(self.steps, cost - 1, -1):
            if self.worth[step - cost] + value > self.worth[step]:
                self.worth[step], taken[step] = self.worth[step - cost] + value, 1
        return taken

    def best(self, step: int) -> frozenset[str]:
        """Return the names that make up the best worth within so many steps."""
        names: list[str] = []
        for (item, cost), taken in zip(reversed(self._items), reversed(self._taken), strict=True):
            if taken[step]:
                names.append(item.name)
                step -= cost
        return frozenset(names)
