"""Intervals against published examples, an independent slow form, and what must hold for any table."""

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.intervals import Pairs, paired_difference, proportion, wilson

counts = st.integers(0, 2000)
tables = st.builds(Pairs, both=counts, only_variant=counts, only_float32=counts, neither=counts).filter(
    lambda pairs: pairs.rows > 0
)


@pytest.mark.parametrize(
    ("count", "rows", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_limits(count: int, rows: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    assert wilson(count, rows=rows) == pytest.approx((low, high), abs=5e-5)


def test_the_paired_interval_gives_the_published_limits() -> None:
    # Bentur et al. 2009, as in Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850, section 9
    found = paired_difference(Pairs(both=1, only_variant=1, only_float32=7, neither=12))
    assert found.value == pytest.approx(-6 / 21)
    assert (found.low, found.high) == pytest.approx((-0.507, -0.026), abs=5e-4)


def slow_wilson(count: int, rows: int) -> tuple[float, float]:
    """Solve |p - share| = z·sqrt(p(1-p)/rows) for p by bisection on both sides of the share."""
    z, share = 1.959963984540054, count / rows

    def outside(p: float) -> bool:
        return abs(p - share) > z * sqrt(p * (1 - p) / rows)

    limits = []
    for end in (0.0, 1.0):
        inner, outer = share, end
        for _ in range(200):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if outside(middle) else (middle, outer)
        limits.append(inner)
    return limits[0], limits[1]


def slow_paired(a: int, b: int, c: int, d: int) -> tuple[float, float]:
    """Newcombe 1998, Statistics in Medicine 17:2635, method 10, written out from its definition."""
    n = a + b + c + d
    l2, u2 = slow_wilson(a + b, n)
    l3, u3 = slow_wilson(a + c, n)
    dl2, du2 = (a + b) / n - l2, u2 - (a + b) / n
    dl3, du3 = (a + c) / n - l3, u3 - (a + c) / n
    phi = 0.0
    if 0 not in (a + b, c + d, a + c, b + d):
        corrected = a * d - b * c
        if corrected > n / 2:
            phi = corrected - n / 2
        elif corrected >= 0:
            phi = 0.0
        else:
            phi = corrected
        phi /= sqrt((a + b) * (c + d) * (a + c) * (b + d))
    theta = (b - c) / n
    return (
        theta - sqrt(dl2 * dl2 - 2 * phi * dl2 * du3 + du3 * du3),
        theta + sqrt(du2 * du2 - 2 * phi * du2 * dl3 + dl3 * dl3),
    )


@pytest.mark.parametrize(
    "table", [(20, 12, 2, 16), (1, 1, 7, 12), (36, 12, 2, 0), (0, 5, 5, 0), (97, 1, 2, 0), (8000, 125, 127, 1748)]
)
def test_the_paired_interval_agrees_with_its_slow_form(table: tuple[int, int, int, int]) -> None:
    a, b, c, d = table
    found = paired_difference(Pairs(both=a, only_variant=b, only_float32=c, neither=d))
    # bisection stops at the resolution of a double; a square root near zero magnifies it
    assert (found.low, found.high) == pytest.approx(slow_paired(a, b, c, d), abs=1e-7)


@given(rows=st.integers(1, 10_000), data=st.data())
def test_a_share_lies_inside_its_interval_and_the_interval_inside_0_and_1(rows: int, data: st.DataObject) -> None:
    found = proportion(data.draw(st.integers(0, rows)), rows=rows)
    assert -1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12


@given(tables)
def test_a_difference_lies_inside_its_interval(pairs: Pairs) -> None:
    found = paired_difference(pairs)
    assert -1 <= found.low <= found.value <= found.high <= 1


@given(tables)
def test_exchanging_the_forms_turns_the_interval_around(pairs: Pairs) -> None:
    turned = Pairs(
        both=pairs.both, only_variant=pairs.only_float32, only_float32=pairs.only_variant, neither=pairs.neither
    )
    one, other = paired_difference(pairs), paired_difference(turned)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)


def test_agreement_narrows_the_paired_interval() -> None:
    agreeing = paired_difference(Pairs(both=900, only_variant=0, only_float32=10, neither=90))
    scattered = paired_difference(Pairs(both=810, only_variant=90, only_float32=100, neither=0))
    assert agreeing.value == pytest.approx(scattered.value)
    assert agreeing.high - agreeing.low < (scattered.high - scattered.low) / 2
