"""What training makes smaller: one line each in `LOSSES`.

Every loss is a mean over rows, 0 at best: what equal parts of a batch say averages to what the whole batch says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from app.domain.errors import ToolchainFailed
from app.domain.recipes import Qat

IGNORED = -100
"""A label that counts for nothing."""

NEGLIGIBLE = 0.01

_CLASS_AXES = 2
_SMALLEST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What a batch should be answered.

    Attributes:
        teacher: the teacher's tensors by name: outputs, and the feature where that is learned.
        labels: classes as int64, or values as float32; None without labels.
        typical: the energy that some rows of the teacher's tensors have, by name: a row with less would count beyond
            measure, and rows whose answer is about 0 decide everything.
    """

    teacher: Mapping[str, Tensor]
    labels: Tensor | None
    typical: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A recipe's loss for one graph.

    Attributes:
        outputs: of the graph, in order.
        feature: what the last layer reads, in the trained graph, and in the teacher's.
        values: the outputs are real numbers, and no classes even where they look like it.
    """

    recipe: Qat
    outputs: Sequence[str]
    feature: tuple[str, str] | None = None
    values: bool = False

    @property
    def negligible(self) -> float:
        """Return a loss so small that a multiple of it is no harm: nats, or a share of energy; 0 for squared values."""
        return 0.0 if self.recipe.loss == "mse" else NEGLIGIBLE

    @property
    def learned(self) -> tuple[str, ...]:
        """Return which of the program's tensors the loss is of."""
        if self.feature is not None:
            return (self.feature[0],)
        return tuple(self.outputs[:1] if self.recipe.uses_labels else self.outputs)

    def loss(self, answers: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Return the loss of a batch."""
        return LOSSES[self.recipe.loss](self, answers, targets)

    def agreeing(self, answers: Mapping[str, Tensor], targets: Targets) -> Tensor | None:
        """Return bool[rows]: answered like the labels, or the teacher; None where the answer is no class of a row."""
        first = answers[self.outputs[0]]
        if self.values or not is_classes(first):
            return None
        if self.recipe.uses_labels:
            labels = targets.labels
            return first.argmax(1) == labels if labels is not None and labels.dtype is torch.int64 else None
        return first.argmax(1) == targets.teacher[self.outputs[0]].argmax(1)


Loss = Callable[[Objective, Mapping[str, Tensor], Targets], Tensor]


def is_classes(output: Tensor) -> bool:
    """Whether an output is (rows, classes)."""
    return output.ndim == _CLASS_AXES and output.shape[1] > 1


def distillation(objective: Objective, answers: Mapping[str, Tensor], targets: Targets) -> Tensor:
    """KL(teacher || student) of softened classes, times the temperature squared so that gradients keep their size
    (Hinton et al. 2015, arXiv:1503.02531, section 2.1). Outputs that are no classes add their squared error."""
    parts = []
    for name in objective.outputs:
        mine, wanted = answers[name], targets.teacher[name]
        if not mine.is_floating_point():
            continue
        if is_classes(mine) and not objective.values:
            parts.append(_kl(mine, wanted, objective.recipe.temperature))
        else:
            parts.append(_error(mine, wanted, typical=targets.typical.get(name, 0.0)))
    if not parts:
        raise ToolchainFailed("The model has no output of real numbers, which a teacher could be followed in.")
    return torch.stack(parts).sum()


def feature_distillation(objective: Objective, answers: Mapping[str, Tensor], targets: Targets) -> Tensor:
    """Squared error to what the teacher's last layer reads, over the energy of that row by row."""
    assert objective.feature is not None  # noqa: S101 - for the type checker: the stage has looked
    mine, theirs = objective.feature
    return _error(answers[mine], targets.teacher[theirs], typical=targets.typical.get(theirs, 0.0))


def cross_entropy(objective: Objective, answers: Mapping[str, Tensor], targets: Targets) -> Tensor:
    """Cross-entropy of the first output's classes, which are axis 1; a place that is ignored counts as 0."""
    assert targets.labels is not None  # noqa: S101 - for the type checker: the rows have been checked
    total = functional.cross_entropy(
        answers[objective.outputs[0]], targets.labels, ignore_index=IGNORED, reduction="sum"
    )
    return total / targets.labels.numel()


def mse(objective: Objective, answers: Mapping[str, Tensor], targets: Targets) -> Tensor:
    """Mean squared error of the first output."""
    assert targets.labels is not None  # noqa: S101 - for the type checker: the rows have been checked
    first = answers[objective.outputs[0]]
    return functional.mse_loss(first, targets.labels.reshape(first.shape).to(first.dtype))


LOSSES: dict[str, Loss] = {
    "distillation": distillation,
    "feature_distillation": feature_distillation,
    "cross_entropy": cross_entropy,
    "mse": mse,
}


def _kl(mine: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    student, teacher = (functional.log_softmax(each / temperature, 1) for each in (mine, wanted))
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _error(mine: Tensor, wanted: Tensor, *, typical: float) -> Tensor:
    errors, energies = (each.square().reshape(len(each), -1).mean(1) for each in (mine - wanted, wanted))
    return (errors / energies.clamp(min=max(typical, _SMALLEST))).mean()
