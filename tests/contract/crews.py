"""Stages in several processes, for tests: code in an upload, which every process executes in its sandbox."""

import asyncio
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contract import hostile
from tests.running import said_through
from workers.limits import Limits
from workers.sandbox import run_stage
from workers.stage_records.importing import ConvertSpec

LIMITS = Limits(memory_bytes=4 * 2**30, scratch_bytes=256 * 2**20, seconds=120)

BEGINNING = """
import json, os
rank, again = int(os.environ.get("RANK", "0")), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
def tell(**found):
    with open(f"new{rank}", "w") as file:
        json.dump(found, file)
    os.rename(f"new{rank}", f"rank{rank}.{again}.json")
"""

LEAST_SQUARES = (
    BEGINNING
    + """
import torch
from workers.training.crew import current
crew = current()
torch.manual_seed(crew.rank)
module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
wrapped = crew.wrap(module)
optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
answers = rows.sum(dim=1, keepdim=True)
for step in range(20):
    mine = slice(crew.rank, None, crew.size)
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(wrapped(rows[mine]), answers[mine]).backward()
    optimizer.step()
tell(size=crew.size, numbers=torch.cat([part.detach().flatten() for part in module.parameters()]).tolist())
crew.close()
"""
)

WAITS = (
    BEGINNING
    + """
if rank == 0:
    with open("started", "w") as pipe:
        pipe.write(str(os.getpid()))
while True:
    pass
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared(ConvertSpec):
    """A stage that executes its upload in several processes."""

    processes: int


async def ignore(*_: object) -> None:
    return None


async def execute(
    scratch: Path, source: str, *, processes: int = 2, limits: Limits = LIMITS, allow_unsandboxed: bool = False
) -> Any:
    """Execute code in so many processes of one stage."""
    hostile.executing_pt2(scratch / "model.pt2", source)
    spec = Shared(upload="model.pt2", processes=processes)
    return await run_stage(
        *("convert", spec),
        scratch=scratch,
        limits=limits,
        on_progress=ignore,
        on_log=ignore,
        allow_unsandboxed=allow_unsandboxed,
    )


async def started(scratch: Path, running: Coroutine[Any, Any, Any]) -> tuple[asyncio.Task[Any], int]:
    """Run a stage until its code writes its process id to the pipe `started`."""
    os.mkfifo(scratch / "started")
    task = asyncio.create_task(running)
    saying = asyncio.create_task(asyncio.to_thread(said_through, scratch / "started"))
    await asyncio.wait([task, saying], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        saying.cancel()
        raise AssertionError(f"the stage ended before its code ran: {task.exception()}")
    return task, int(saying.result())
