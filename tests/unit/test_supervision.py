"""How long a program that ends soon after its start waits for the next one."""

import pytest

from app.supervision import Program


@pytest.mark.parametrize(("early_ends", "seconds"), [(0, 0.5), (1, 0.5), (2, 1.0), (3, 2.0), (100, 30.0)])
def test_a_program_is_started_less_and_less_often(early_ends: int, seconds: float) -> None:
    program = Program(command=["false"], environment={}, grace=1, early_ends=early_ends)
    assert program.pause_seconds == seconds


@pytest.mark.parametrize(("early_ends", "hopeless"), [(2, False), (3, True)])
def test_a_program_is_hopeless_after_three_early_ends(early_ends: int, *, hopeless: bool) -> None:
    assert Program(command=["false"], environment={}, grace=1, early_ends=early_ends).hopeless == hopeless
