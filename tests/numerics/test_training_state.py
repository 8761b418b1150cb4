"""A training's state comes back to the bit from its file, and what is no whole file is none."""

import math
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from app.domain.training import StartScore, TrainingPoint
from tests.needs import absent, installed, need_root
from workers.training.state import Journal, State, load_optimizer, optimizer_state, read, write

JOURNAL = Journal(
    fingerprint="f",
    start="s",
    starts=[StartScore(recipe="r", score=1 / 3, agreement=None)],
    step=7,
    points=[TrainingPoint(step=0, loss=None, learning_rate=0.0, score=0.1, agreement=2 / 3)],
    losses=[0.1 + 0.2, 1e-300, math.inf],
    first=math.pi,
    best_score=math.inf,
    resumed_at=[3],
    ended="early stopping",
    reason="Stopped.",
)


def state(**tensors: Tensor) -> State:
    return State(journal=JOURNAL, module=tensors, best=tensors, optimizer={"0.step": torch.tensor(7.0)}, crew={})


WEIRD = torch.tensor([math.nan, -0.0, math.inf, 1e-45, 1 / 3])


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "out/state.safetensors"
    write(state(a=WEIRD, b=torch.arange(6, dtype=torch.int32).reshape(2, 3).T), path)
    found = read(path)
    assert found is not None
    assert asdict(found.journal) == asdict(JOURNAL)
    assert found.module["a"].numpy().tobytes() == WEIRD.numpy().tobytes()
    assert torch.equal(found.best["b"], torch.tensor([[0, 3], [1, 4], [2, 5]], dtype=torch.int32))
    assert list(found.optimizer) == ["0.step"]


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(5)
    write(state(a=WEIRD), tmp_path / "state")
    expected = torch.rand(4)
    torch.manual_seed(6)
    read(tmp_path / "state")
    assert torch.equal(torch.rand(4), expected)


def test_views_of_one_memory_are_kept_apart(tmp_path: Path) -> None:
    both = torch.arange(8.0)
    write(state(a=both[:4], b=both[2:], c=both), tmp_path / "state")
    found = read(tmp_path / "state")
    assert found is not None
    assert found.module["b"].tolist() == both[2:].tolist()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_file_that_arrived_in_part_is_none(share: float, tmp_path: Path) -> None:
    path = tmp_path / "state"
    write(state(a=torch.ones(1000)), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert read(path) is None


def test_a_file_of_something_else_is_none(tmp_path: Path) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415 - what else may lie there

    for name, metadata in (("bare", None), ("text", {"journal": "{"}), ("other", {"journal": '{"step": 1}'})):
        save_file({"a": WEIRD}, tmp_path / name, metadata)
        assert read(tmp_path / name) is None
    (tmp_path / "pickle").write_bytes(b"\x80\x04" + os.urandom(200))
    assert read(tmp_path / "pickle") is None
    assert read(tmp_path / "nowhere") is None


def test_no_half_file_takes_the_place_of_a_whole_one(full_disk: Path) -> None:
    path = full_disk / "state.safetensors"
    write(state(a=torch.ones(1000)), path)
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"(?i)space|os error 28"):
        write(state(a=torch.ones(1_000_000)), path)
    assert path.read_bytes() == before
    assert [each.name for each in full_disk.iterdir()] == [path.name]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    need_root()
    mount, unmount = (installed(program, package="mount") for program in ("mount", "umount"))
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "octet", tmp_path], check=False).returncode:
        absent("a kernel that lets root mount")
    yield tmp_path
    subprocess.run([unmount, tmp_path], check=True)


def optimizers(parameters: list[nn.Parameter]) -> list[Optimizer]:
    groups: list[dict[str, Any]] = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:]}]
    return [AdamW(groups, lr=0.1, foreach=True), SGD(groups, lr=0.1, momentum=0.9, foreach=True)]


def step(optimizer: Optimizer, parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("which", [0, 1], ids=["adamw", "sgd"])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(which: int, tmp_path: Path) -> None:
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(1))]
    optimizer = optimizers(parameters)[which]
    for number in range(3):
        step(optimizer, parameters, number)
    again = [nn.Parameter(each.detach().clone()) for each in parameters]
    held = State(journal=JOURNAL, module={}, best={}, optimizer=optimizer_state(optimizer), crew={})
    write(held, tmp_path / "state")
    found = read(tmp_path / "state")
    assert found is not None
    resumed = optimizers(again)[which]
    load_optimizer(resumed, found.optimizer)
    for number in range(3, 6):
        step(optimizer, parameters, number)
        step(resumed, again, number)
    assert all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))
