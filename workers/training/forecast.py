"""What training will need, from rehearsals on few rows, before it takes it."""

import time
from statistics import median

import torch

from app.domain.errors import DoesNotFit
from workers.stage_records.training import TrainSpec
from workers.training.loop import Trainer
from workers.training.material import Material
from workers.training.memory import held_bytes
from workers.training.program import Program

_FEW, _MORE = 2, 4
_REHEARSALS = 3
_TRANSIENT = 1.5
"""Gradients of activations live beside the activations that are still kept, but not all at once."""
_COPIES = 7
"""Of every parameter: its gradient, two moments, the best state, a checkpoint on its way twice, and what is updated."""


def check_memory(trainer: Trainer, program: Program, material: Material, spec: TrainSpec, *, size: int) -> int:
    """Return how much memory a process will need, after a look at what few rows keep for the way back.

    Raises:
        DoesNotFit: it is more than there is.
    """
    few, more = (_kept_bytes(trainer, material, rows) for rows in (_FEW, _MORE))
    per_row = max(0, more - few) / (_MORE - _FEW)
    rows = -(-spec.recipe.batch_size // size)
    activations = max(0.0, few - per_row * _FEW) + per_row * rows
    stored = sum(each.numel() * each.element_size() for each in program.parameters())
    needed = int(held_bytes() + _TRANSIENT * activations + _COPIES * stored)
    if needed * size > spec.memory_bytes:
        raise DoesNotFit(
            f"Training would need about {needed * size:,} bytes of memory and may take {spec.memory_bytes:,} "
            f"(OCTET_JOB_MEMORY_BYTES): take a batch_size below {spec.recipe.batch_size}."
        )
    return needed * size


def check_time(trainer: Trainer, spec: TrainSpec, *, done: int, look_seconds: float) -> float:
    """Return how long what is left will take, after some rehearsals of a whole step.

    Args:
        done: steps of an earlier attempt: what has begun is not refused, it ends with the best there is in time.

    Raises:
        DoesNotFit: it is longer than there is.
    """
    times = []
    for _ in range(_REHEARSALS):
        began = time.monotonic()
        trainer.rehearse(trainer.part(0))
        times.append(time.monotonic() - began)
    left = max(0, trainer.steps - done)
    per_step, room = median(times), trainer.seconds_left
    seconds = left * per_step + spec.recipe.looks * (left / max(1, trainer.steps)) * look_seconds
    if seconds > room and not done:
        raise DoesNotFit(
            f"Training would take about {seconds:.0f} seconds for {left} steps of {per_step:.2f} s, and the job has "
            f"{room:.0f} left for it (OCTET_JOB_TIMEOUT_SECONDS): take fewer epochs or steps."
        )
    return seconds


def _kept_bytes(trainer: Trainer, material: Material, rows: int) -> int:
    """Return how many bytes a forward pass keeps for the way back."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.rehearse(material.first(rows))
    return sum(kept.values())
