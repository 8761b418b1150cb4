"""The state of a training in one file: tensors as safetensors, the rest as JSON in its header. None of it is code."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from app.domain.training import Ended, StartScore, TrainingPoint

Tensors = dict[str, Tensor]

_MODULE, _BEST, _OPTIMIZER, _CREW, _RANDOM = "module.", "best.", "optimizer.", "crew.", "random"
_JOURNAL = "journal"


@dataclass(slots=True, kw_only=True)
class Journal:
    """What training has to remember beside its tensors.

    Attributes:
        fingerprint: of all that the result depends on; another one's state is none of ours.
        start: SHA-256 of the artifact it began from; `starts` are all that were looked at.
        unrounded: the quantizers that the engine does not round at.
        step: finished steps; with the seed, the position in the rows.
        losses: since the last point of the curve.
        first: the first loss, `recent` the newest: what divergence is judged by.
        stale: looks at the held-out rows since the best one.
        seconds: of training, up to this state.
        ended, reason: why it is over, if it is before its last step: who takes it over has nothing to train.
    """

    fingerprint: str
    start: str
    starts: list[StartScore] = field(default_factory=list)
    unrounded: list[str] = field(default_factory=list)
    step: int = 0
    points: list[TrainingPoint] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    first: float | None = None
    recent: list[float] = field(default_factory=list)
    best_step: int = 0
    best_score: float = float("inf")
    stale: int = 0
    seconds: float = 0.0
    resumed_at: list[int] = field(default_factory=list)
    ended: Ended | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A training between two steps.

    Attributes:
        module: parameters and observers; `best` the same at the best step.
        optimizer: its moments, by `group.parameter.name`.
        crew: what the processes keep between steps, such as the error that compression left over.
    """

    journal: Journal
    module: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    crew: Mapping[str, Tensor]


def write(state: State, path: Path) -> None:
    """Write a state, whole or not at all.

    Raises:
        OSError: the disk is full; the file that was there stays.
    """
    groups = {_MODULE: state.module, _BEST: state.best, _OPTIMIZER: state.optimizer, _CREW: state.crew}
    tensors = {
        prefix + name: each.detach().contiguous() for prefix, group in groups.items() for name, each in group.items()
    }
    tensors = {name: each.clone() for name, each in tensors.items()}  # the format takes no two views of one memory
    tensors[_RANDOM] = torch.get_rng_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    try:
        save_file(tensors, half, {_JOURNAL: json.dumps(asdict(state.journal))})
    except SafetensorError as error:  # how the library says that the disk is full
        half.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    half.replace(path)


def read(path: Path) -> State | None:
    """Read a state and set torch's random numbers to it; None for a file that holds none."""
    groups: dict[str, Tensors] = {_MODULE: {}, _BEST: {}, _OPTIMIZER: {}, _CREW: {}}
    try:
        with safe_open(path, framework="pt") as file:
            journal = TypeAdapter(Journal).validate_json((file.metadata() or {}).get(_JOURNAL, ""))
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                prefix = next((each for each in groups if name.startswith(each)), None)
                if prefix is not None:
                    groups[prefix][name.removeprefix(prefix)] = file.get_tensor(name)
            torch.set_rng_state(file.get_tensor(_RANDOM))
    except (SafetensorError, ValidationError, OSError, RuntimeError):
        return None
    return State(
        journal=journal, module=groups[_MODULE], best=groups[_BEST], optimizer=groups[_OPTIMIZER], crew=groups[_CREW]
    )


def optimizer_state(optimizer: Optimizer) -> Tensors:
    """Return an optimizer's moments as named tensors."""
    found: Tensors = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[f"{number}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return found


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give an optimizer its moments back."""
    parameters = _parameters(optimizer)
    for name, value in state.items():
        number, key = name.split(".", 1)
        optimizer.state[parameters[int(number)]][key] = value.clone()


def _parameters(optimizer: Optimizer) -> list[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
