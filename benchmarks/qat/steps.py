"""What fake quantization costs a step: graphs trained by the same loop on the same batch, taking turns."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.domain.recipes import PtqStatic, Qat
from benchmarks.qat.arithmetic import ratios
from benchmarks.qat.journal import Steps
from benchmarks.serving.arithmetic import median
from workers.toolchains.graph import load_graph
from workers.toolchains.prepare import prepare
from workers.training import biases
from workers.training.latents import latents_of
from workers.training.losses import Objective, Targets
from workers.training.program import Program
from workers.training.quantizers import Scales
from workers.training.schedule import optimizer_of, set_rate

_WARM = 5


def measure_steps(float32: Path, start: Path, rows: Path, recipe: Qat, *, rounds: int) -> Steps:
    """Time a step of the float graph, of the quantized one with scales fixed and learned, and of the float one again.

    Args:
        rows: a file of inputs; the first of them are the batch.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.use_deterministic_algorithms(mode=True)
    x = np.array(np.load(rows, mmap_mode="r")[: recipe.batch_size])
    steps = {
        "float32": _step(_float_program(float32), x, recipe),
        "scales fixed": _step(_quantized(start, float32, recipe, scales="fixed"), x, recipe),
        "scales learned": _step(_quantized(start, float32, recipe, scales="learned"), x, recipe),
        "float32 again": _step(_float_program(float32), x, recipe),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(_WARM + rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if number >= _WARM:
                times[name].append(time.perf_counter() - began)
    first = times.pop("float32")
    return Steps(float_seconds=median(first), ratios={name: ratios(each, first) for name, each in times.items()})


def _float_program(float32: Path) -> Program:
    return Program(prepare(load_graph(float32), PtqStatic()), latents={}, bounds={}, scales="fixed")


def _quantized(start: Path, float32: Path, recipe: Qat, *, scales: Scales) -> Program:
    model = biases.in_float(load_graph(start))
    latents, bounds = latents_of(
        model, prepare(load_graph(float32), PtqStatic()), narrow=(0, -1), wide_layers=recipe.int8_layers
    )
    return Program(model, latents=latents, bounds=bounds, scales=scales)


def _step(program: Program, x: NDArray[np.float32], recipe: Qat) -> Callable[[], None]:
    """Return a whole step as the loop does it: forward, loss, backward, clip, optimizer."""
    inputs = {program.model.graph.input[0].name: torch.from_numpy(x)}
    with torch.no_grad():
        shapes = {name: each.shape for name, each in program(inputs).items()}
    generator = torch.Generator().manual_seed(0)  # a teacher of other opinion, so that there is something to learn
    teacher = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    targets = Targets(teacher=teacher, labels=None)
    objective, optimizer = Objective(recipe=recipe, outputs=program.outputs), optimizer_of(program, recipe)
    program.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = objective.loss(program(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(program.parameters(), recipe.gradient_clip)
        set_rate(optimizer, 1e-6)
        optimizer.step()

    return step
