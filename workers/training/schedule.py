"""Optimizers and the learning rate: one line each in `OPTIMIZERS` and `SCHEDULES`."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer

from app.domain.recipes import Qat
from workers.training.program import Program

SCALE_RATE = 10.0
"""How many times the weights' rate a scale's factor is trained with: it is near 1, they are mostly far below."""

MOMENTUM = 0.9

Groups = Iterable[dict[str, Any]]

OPTIMIZERS: dict[str, Callable[[Groups], Optimizer]] = {
    "adamw": lambda groups: AdamW(groups, foreach=True),
    "sgd": lambda groups: SGD(groups, momentum=MOMENTUM, foreach=True),
}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _share: 1.0,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
}
"""The rate's share of its highest, by the share of the steps after the warm-up that are done."""


def optimizer_of(program: Program, recipe: Qat) -> Optimizer:
    """Return the recipe's optimizer; weight decay is for weights alone."""
    factors = [each for name, each in program.named_parameters() if name.endswith(".factor")]
    weights = [each for name, each in program.named_parameters() if name.endswith(".latent")]
    weights += [each for each in program.floats.parameters() if each.ndim > 1]
    rest = [each for each in program.floats.parameters() if each.ndim <= 1]
    groups = [_group(weights, recipe.weight_decay, 1.0), _group(rest, 0.0, 1.0), _group(factors, 0.0, SCALE_RATE)]
    return OPTIMIZERS[recipe.optimizer]([group for group in groups if group["params"]])


def rate_at(recipe: Qat, *, step: int, steps: int) -> float:
    """Return the learning rate of a step, the first being 0."""
    assert recipe.learning_rate is not None  # noqa: S101 - for the type checker: the record fills it in
    warm = math.ceil(recipe.warmup * steps)
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    return recipe.learning_rate * SCHEDULES[recipe.schedule]((step - warm) / max(1, steps - warm))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group its rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["times"]


def _group(parameters: list[Parameter], weight_decay: float, times: float) -> dict[str, Any]:
    return {"params": parameters, "weight_decay": weight_decay, "times": times, "lr": 0.0}
