"""What the tests of the stage `train` begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.contract.training.material import LABELS, ROWS, Material, material
from tests.graphs import conv_classifier, rows
from tests.quantized import Grids
from workers.training import loop


@pytest.fixture(autouse=True)
def settings_of_torch_are_given_back() -> Iterator[None]:
    """A stage has a process of its own; here it shares one with other tests."""
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def every_step_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WRITING_STRETCH", 0)  # however long it takes


@pytest.fixture
def images(tmp_path: Path) -> Material:
    return material(tmp_path / "s", conv_classifier(), {"x": rows(ROWS)}, labels=LABELS)


@pytest.fixture
def narrow(tmp_path: Path) -> Material:
    """4 bits: there is something to learn."""
    grids = Grids(bits=4, activation_bits=4)
    return material(tmp_path / "s", conv_classifier(), {"x": rows(ROWS)}, labels=LABELS, starts=(grids,))
