"""Routing: which variant of a model answers when the caller names none, and how several share the requests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from itertools import accumulate
from random import Random

from app.domain.errors import RequestInvalid
from app.domain.names import check_name

MOST_WEIGHTS = 16
LARGEST_WEIGHT = 1e6
LONGEST_BY = 200
LONGEST_NOTE = 1000
_POINTS = 2.0**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One numbered decision; the highest number is in force and the others are its history.

    Attributes:
        version: which version of the model answers.
        variant: which variant of that version; None where weights decide.
        weights: how often each variant answers, as proportions that need not sum up to 1; None where one variant does.
        by: who decided; None in records of before that was kept.
        note: why, in the decider's words.
    """

    number: int
    model: str
    version: int
    variant: str | None = None
    weights: dict[str, float] | None = field(default=None, hash=False)
    created_at: datetime
    by: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if (self.variant is None) == (self.weights is None):
            raise RequestInvalid(f"The route of {self.model!r} needs either 'variant' or 'weights': send one of them.")
        if self.weights is not None:
            _check_weights(self.weights, model=self.model)
        _check_text(self.by, of="by", longest=LONGEST_BY)
        _check_text(self.note, of="note", longest=LONGEST_NOTE)

    @property
    def shares(self) -> dict[str, float]:
        """The share of requests of every variant that gets any, by name; they sum up to 1."""
        if self.weights is None:
            return {} if self.variant is None else {self.variant: 1.0}
        total = math.fsum(self.weights.values())
        return {name: weight / total for name, weight in sorted(self.weights.items()) if weight > 0}


class Split:
    """Chooses one of several names in given proportions.

    Args:
        salt: what makes a key's choice differ between two splits of the same names: the model's name.
        weights: positive, by name.
    """

    def __init__(self, weights: Mapping[str, float], *, salt: str) -> None:
        self._weights = tuple(sorted(weights.items()))
        self._names = [name for name, _ in self._weights]
        self._bounds = list(accumulate(weight for _, weight in self._weights))
        self._hashes = [
            (name, weight, blake2b(f"{salt}\0{name}\0".encode(), digest_size=8)) for name, weight in self._weights
        ]

    def at_random(self, random: Random) -> str:
        """Choose a name by chance."""
        if len(self._names) == 1:
            return self._names[0]
        return random.choices(self._names, cum_weights=self._bounds)[0]

    def for_key(self, key: str) -> str:
        """Choose the key's own name: the same in every process as long as the weights are the same.

        Each name draws an exponential waiting time with its weight as the rate, from a hash of name and key; the
        shortest wins, with a probability in proportion to the weight. So a change of weights moves few keys: between
        two names exactly the difference of their shares (rendezvous hashing: Thaler and Ravishankar, 1998).
        """
        if len(self._names) == 1:
            return self._names[0]
        data = key.encode()
        shortest, chosen = math.inf, self._names[0]
        for name, weight, begun in self._hashes:
            drawn = begun.copy()
            drawn.update(data)
            uniform = (int.from_bytes(drawn.digest()) + 0.5) / _POINTS
            waits = -math.log(uniform) / weight
            if waits < shortest:
                shortest, chosen = waits, name
        return chosen


def _check_weights(weights: Mapping[str, float], *, model: str) -> None:
    if not 1 <= len(weights) <= MOST_WEIGHTS:
        raise RequestInvalid(
            f"The route of {model!r} has weights for {len(weights)} variants: give 1 to {MOST_WEIGHTS} of them."
        )
    for name, weight in weights.items():
        check_name(name, of="variant")
        if not 0 <= weight <= LARGEST_WEIGHT:  # NaN is not either
            raise RequestInvalid(f"The weight of {name!r} is {weight:g}: take a number from 0 to {LARGEST_WEIGHT:g}.")
    if not any(weights.values()):
        raise RequestInvalid(f"No weight in the route of {model!r} is above 0: let one variant answer at least.")


def _check_text(text: str | None, *, of: str, longest: int) -> None:
    if text is not None and not (0 < len(text) <= longest and text.isprintable()):
        raise RequestInvalid(f"The route's {of!r} is not usable: write 1 to {longest} printable characters.")
