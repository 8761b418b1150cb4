"""Quantization-aware training: a static quantization whose weights and scales are trained on rows."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from app.domain.errors import RecipeInvalid
from app.domain.recipes.ptq_static import PtqStatic
from app.domain.recipes.static import WIDE, StaticQuantization

Loss = Literal["distillation", "feature_distillation", "cross_entropy", "mse"]
Compression = Literal["none", "fp16", "powersgd", "int8"]

USES_LABELS = frozenset({"cross_entropy", "mse"})

DEFAULT_EPOCHS = 10
MOST_EPOCHS, MOST_STEPS = 10_000, 10_000_000
MOST_BATCH = 4096
MOST_PROCESSES = 64
MOST_CROP = 64
LEAST_CHECKPOINT_SECONDS = 1.0

_RATES: dict[str, float] = {"adamw": 1e-4, "sgd": 1e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qat(StaticQuantization):
    """Training with fake quantization and straight-through gradients (Jacob et al. 2018, arXiv:1712.05877).

    It begins from the best post-training quantization under the same precision fields.

    Attributes:
        loss: `distillation` is the KL divergence from the teacher's answers at `temperature` (Hinton et al. 2015,
            arXiv:1503.02531); `feature_distillation` the mean squared error to what the teacher's last layer reads.
            Neither needs labels. `cross_entropy` needs class labels, `mse` values of the shape of the first
            output; with labels no other output is trained.
        teacher: `name` or `name:version` of another model with the same classes; None is the model's own float32.
        temperature: of both softmaxes, 0.1 to 100.
        epochs, steps: how long; one of them. None for both is 10 epochs.
        batch_size: rows of one step, of all processes together, 1 to 4,096.
        optimizer: SGD with momentum 0.9, or AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).
        learning_rate: the highest; None is 1e-4 for AdamW, 1e-3 for SGD.
        weight_decay: 0 to 1.
        schedule: `cosine` falls to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983).
        warmup: share of the steps in which the rate rises from 0, 0 to 0.5.
        gradient_clip: largest norm of the gradient; None leaves it as it is.
        flip: turn images left to right, each with probability one half.
        crop: pixels of zeros added around an image before a piece of its size is cut out at random, 0 to 64.
        scales: `fixed` keeps those of the start, `observed` follows the activations' moving extremes, `learned` trains
            all scales (LSQ, Esser et al. 2020, arXiv:1902.08153). `observed` needs one process.
        freeze_observers: share of the steps after which observed scales stay, 0 to 1.
        freeze_batch_norm: share of the steps after which the statistics of folded batch normalizations stay, 0 to 1; 0
            leaves them as they were exported. Above 0 it needs one process.
        held_out: share of the training rows that do not train and choose the best step, 0.01 to 0.5.
        patience: stop after so many looks at the held-out rows without a better one; None never does.
        looks: how often to look at the held-out rows, 1 to 1,000, evenly spread.
        checkpoint_seconds: how often the state is stored, at least 1.
        processes: how many processes train together, each on its part of every batch.
        compression: of the gradients between processes.
        rounding: of the start; where weights have fewer than 8 bits, `adaround` is tried beside it.
    """

    technique: Literal["qat"] = "qat"
    loss: Loss = "distillation"
    teacher: str | None = None
    temperature: float = 4.0
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float | None = None
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.05
    gradient_clip: float | None = 1.0
    flip: bool = False
    crop: int = 0
    scales: Literal["fixed", "observed", "learned"] = "learned"
    freeze_observers: float = 0.5
    freeze_batch_norm: float = 0.0
    held_out: float = 0.1
    patience: int | None = None
    looks: int = 20
    checkpoint_seconds: float = 30.0
    processes: int = 1
    compression: Compression = "none"

    def __post_init__(self) -> None:
        StaticQuantization.__post_init__(self)
        if self.learning_rate is None:  # the record always says what was done
            object.__setattr__(self, "learning_rate", _RATES[self.optimizer])
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", DEFAULT_EPOCHS)
        if self.epochs is not None and self.steps is not None:
            raise RecipeInvalid("epochs and steps both say how long to train: leave one out.")
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # NaN is outside, too
                raise RecipeInvalid(f"{name} is {value:g}: take {least:g} to {most:g}.")
        _check_together(self)

    @property
    def uses_labels(self) -> bool:
        """Whether the training rows need labels."""
        return self.loss in USES_LABELS

    @property
    def distils(self) -> bool:
        """Whether a teacher answers the training rows."""
        return not self.uses_labels

    @property
    def starts(self) -> tuple[PtqStatic, ...]:
        """The post-training recipes to begin from, of which the best on the held-out rows is taken."""
        given = PtqStatic(
            **{each.name: getattr(self, each.name) for each in fields(PtqStatic) if each.name != "technique"}
        )
        if self.weight_bits == WIDE or self.toolchain == "torchao" or self.rounding != "nearest":
            return (given,)
        return given, replace(given, rounding="adaround")


_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.1, 100),
    "epochs": (1, MOST_EPOCHS),
    "steps": (1, MOST_STEPS),
    "batch_size": (1, MOST_BATCH),
    "learning_rate": (1e-9, 10),
    "weight_decay": (0, 1),
    "warmup": (0, 0.5),
    "gradient_clip": (1e-9, 1e9),
    "crop": (0, MOST_CROP),
    "freeze_observers": (0, 1),
    "freeze_batch_norm": (0, 1),
    "held_out": (0.01, 0.5),
    "patience": (1, 1000),
    "looks": (1, 1000),
    "checkpoint_seconds": (LEAST_CHECKPOINT_SECONDS, 24 * 3600),
    "processes": (1, MOST_PROCESSES),
}


def _check_together(recipe: Qat) -> None:
    if recipe.teacher is not None and recipe.uses_labels:
        raise RecipeInvalid(f"A teacher answers for distillation, and the loss is {recipe.loss!r}: leave one out.")
    if recipe.teacher is not None and recipe.loss == "feature_distillation":
        raise RecipeInvalid("Another model has other features: take the loss 'distillation' with a teacher.")
    if recipe.compression != "none" and recipe.processes == 1:
        raise RecipeInvalid("compression is of the gradients between processes, and there is one: leave it out.")
    if recipe.scales == "observed" and recipe.processes > 1:
        raise RecipeInvalid(
            f"Observed scales follow the rows that a process sees, and each of {recipe.processes} processes sees its "
            "own: take learned or fixed scales, or one process."
        )
    if recipe.freeze_batch_norm > 0 and recipe.processes > 1:
        raise RecipeInvalid(
            f"Batch statistics follow the rows that a process sees, and each of {recipe.processes} processes sees its "
            "own: take freeze_batch_norm 0, or one process."
        )
    if recipe.processes > recipe.batch_size:
        raise RecipeInvalid(
            f"A batch of {recipe.batch_size} rows cannot be shared by {recipe.processes} processes: take a larger one."
        )
