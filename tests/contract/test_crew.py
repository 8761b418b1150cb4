"""Processes that train together: the same numbers in all of them, whatever travels between them."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from workers.training.crew import Alone, current
from workers.training.hooks import POWERSGD_FROM, POWERSGD_RANK

COMPRESSIONS = ("none", "fp16", "powersgd", "int8")
STEPS = 16
HALF = STEPS // 2

_PROGRAM = """
import json, os, sys
import torch
from workers.training.crew import current

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(64, 96), torch.nn.Linear(96, 8, bias=False)
        self.scale, self.unused = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.zeros(3))
    def forward(self, rows):
        return self.last(torch.tanh(self.first(rows))) * self.scale

def train(crew, state, steps):
    torch.manual_seed(crew.rank)
    module = Net()
    if state:
        module.load_state_dict(state["module"])
    wrapped = crew.wrap(module)
    if state:
        crew.load_state_dict(state["crew"])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for step in steps:
        rows = torch.randn(8, 64, generator=torch.Generator().manual_seed(1000 * step + crew.rank))
        optimizer.zero_grad()
        wrapped(rows).square().mean().backward()
        optimizer.step()
    kept = {"module": {name: part.clone() for name, part in module.state_dict().items()}, "crew": crew.state_dict()}
    numbers = torch.cat([part.detach().flatten() for part in module.parameters()])
    return kept, numbers.tolist()

def meet(compression):
    os.environ["MASTER_PORT"] = str(PORTS.pop(0))
    return current(compression=compression)

found = {}
for compression in COMPRESSIONS:
    crew = meet(compression)
    half, _ = train(crew, None, range(HALF))
    _, whole = train(crew, half, range(HALF, STEPS))
    wire = crew.wire()
    crew.close()
    crew = meet(compression)
    _, resumed = train(crew, half, range(HALF, STEPS))
    found[compression] = {"whole": whole, "resumed": resumed, "plain": wire.plain_bytes, "sent": wire.sent_bytes,
        "mean": crew.mean([crew.rank, 0.1]), "any": [crew.any(crew.rank == 1), crew.any(False)]}
    crew.close()
json.dump(found, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found that trained with every compression, half of it twice."""
    folder = tmp_path_factory.mktemp("crew")
    program = f"COMPRESSIONS, STEPS, HALF, PORTS = {COMPRESSIONS!r}, {STEPS}, {HALF}, {_free_ports()!r}\n{_PROGRAM}"
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    paths = [folder / f"{rank}.json" for rank in range(2)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", program, path], env={**shared, "RANK": str(rank)})
        for rank, path in enumerate(paths)
    ]
    try:
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [json.loads(path.read_text()) for path in paths]


def _free_ports() -> list[int]:
    """One for each time that the processes meet."""
    with ExitStack() as servers:
        made = [servers.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2 * len(COMPRESSIONS))]
        return [server.getsockname()[1] for server in made]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_all_processes_end_with_the_same_bits(found: list[dict[str, Any]], compression: str) -> None:
    first, second = (each[compression]["whole"] for each in found)
    assert first == second


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_training_that_goes_on_from_a_state_ends_with_the_same_bits(
    found: list[dict[str, Any]], compression: str
) -> None:
    assert found[0][compression]["resumed"] == found[0][compression]["whole"]


def test_the_bytes_that_are_sent_are_counted(found: list[dict[str, Any]]) -> None:
    sent = {compression: found[0][compression]["sent"] for compression in COMPRESSIONS}
    numbers = 64 * 96 + 96 + 96 * 8 + 1 + 3
    assert found[0]["int8"]["plain"] == sent["none"] == 4 * numbers
    assert sent["fp16"] == 2 * numbers
    assert sent["int8"] == numbers + 4 * 5  # and a scale for every parameter
    low_rank = (64 + 96) * POWERSGD_RANK + 96 + 96 * 8 + 1 + 3
    waited = STEPS - POWERSGD_FROM
    assert sent["powersgd"] == 4 * (POWERSGD_FROM * numbers + waited * low_rank) / STEPS


def test_compressed_training_ends_near_the_uncompressed(found: list[dict[str, Any]]) -> None:
    numbers = {name: torch.tensor(found[0][name]["whole"]) for name in COMPRESSIONS}
    size = numbers["none"].norm()
    assert (numbers["fp16"] - numbers["none"]).norm() < 1e-3 * size
    assert (numbers["int8"] - numbers["none"]).norm() < 1e-2 * size
    assert (numbers["powersgd"] - numbers["none"]).norm() < 1e-1 * size


def test_means_and_flags_are_those_of_all(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["none"]["mean"] == [0.5, 0.1]
        assert each["none"]["any"] == [True, False]


def test_a_process_by_itself_is_its_own_crew() -> None:
    crew = current()
    module = torch.nn.Linear(1, 1)
    assert isinstance(crew, Alone)
    assert crew.wrap(module) is module
    assert (crew.mean([3.0]), crew.any(flag=True), crew.state_dict(), crew.wire()) == ([3.0], True, {}, None)
