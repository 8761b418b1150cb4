"""What can teach a model: another model's signature, and labels of a kind. One rule for whoever asks and who trains."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.errors import SignatureMismatch, ToolchainFailed
from app.domain.metrics import Labels
from app.domain.recipes import Qat
from app.domain.tensors import Signature, TensorSpec

TAKES: dict[str, tuple[Labels, ...]] = {"cross_entropy": ("class", "class_map"), "mse": ("values",)}
"""The labels that a loss can take; losses that are not here need none."""

_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """The model's names of inputs and of outputs, by the teacher's."""

    inputs: dict[str, str]
    outputs: dict[str, str]


def pair(theirs: Signature, mine: Signature, *, teacher: str, model: str) -> Pairing:
    """Pair a teacher's tensors with the model's: by name where the names are the same set, else by position.

    Args:
        teacher, model: what the sentence calls them.

    Raises:
        SignatureMismatch: their numbers differ, or the dtype or shape of a pair; a size that is not fixed fits any.
    """
    return Pairing(
        inputs=_paired(theirs.inputs, mine.inputs, teacher=teacher, model=model, verb="takes"),
        outputs=_paired(theirs.outputs, mine.outputs, teacher=teacher, model=model, verb="answers"),
    )


def check_batched(signature: Signature) -> None:
    """Check that a model takes a batch.

    Raises:
        ToolchainFailed: it does not.
    """
    if not signature.batched:
        raise ToolchainFailed(
            "The model takes one row at a time, and training takes a batch: export it with a symbolic batch axis."
        )


def has_labels(recipe: Qat, kind: Labels) -> bool:
    """Whether rows with labels of a kind have what a recipe's loss needs."""
    return not recipe.uses_labels or kind in TAKES[recipe.loss]


def _paired(
    theirs: Sequence[TensorSpec], mine: Sequence[TensorSpec], *, teacher: str, model: str, verb: str
) -> dict[str, str]:
    named = {spec.name: spec for spec in mine}
    by_name = named.keys() == {spec.name for spec in theirs}
    others = [named[spec.name] for spec in theirs] if by_name else mine
    if len(theirs) != len(mine) or not all(_fit(one, other) for one, other in zip(theirs, others, strict=True)):
        raise SignatureMismatch(
            f"Teacher {teacher} {verb} {_described(theirs)}, but {model} {verb} {_described(mine)}: name a teacher "
            "with the same inputs and classes."
        )
    return {one.name: other.name for one, other in zip(theirs, others, strict=True)}


def _fit(teacher: TensorSpec, model: TensorSpec) -> bool:
    """Whether two tensors have one dtype and rows of one shape, as far as it is fixed."""
    return (
        (teacher.dtype, teacher.batch_axis) == (model.dtype, model.batch_axis)
        and len(teacher.row_shape) == len(model.row_shape)
        and all(
            None in (theirs, ours) or theirs == ours
            for theirs, ours in zip(teacher.row_shape, model.row_shape, strict=True)
        )
    )


def _described(specs: Sequence[TensorSpec]) -> str:
    more = f" and {len(specs) - _NAMED} more" if len(specs) > _NAMED else ""
    return ", ".join(f"{spec.name[:80]!r} as {spec.describe()}" for spec in specs[:_NAMED]) + more
