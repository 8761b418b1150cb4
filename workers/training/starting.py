"""One start, read into torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from app.domain.errors import ToolchainFailed
from app.domain.recipes import Qat
from app.domain.recipes.static import WIDE
from workers.toolchains.graph import load_graph
from workers.toolchains.octet.rounding.layers import OPERATORS
from workers.toolchains.octet.rounding.wiring import Wiring
from workers.training import biases
from workers.training.batch_norms import Norm
from workers.training.latents import latents_of
from workers.training.losses import Objective
from workers.training.program import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """
    Attributes:
        place: among the starts.
        sha256: of its artifact.
        unrounded: the quantizers that the engine does not round at.
    """

    place: int
    program: Program
    objective: Objective
    sha256: str
    unrounded: frozenset[str] = frozenset()


def begin(
    path: Path, float32: onnx.ModelProto, recipe: Qat, *, place: int, norms: Mapping[str, Norm], values: bool
) -> Begun:
    """Read a start.

    Args:
        float32: the graph before quantization, prepared as it was then.
        norms: folded batch normalizations whose statistics move on.
        values: of the objective.

    Raises:
        ToolchainFailed: torch cannot train the graph.
    """
    model = biases.in_float(load_graph(path))
    bits = recipe.weight_bits
    narrow = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if bits != WIDE else (0, -1)
    latents, bounds = latents_of(model, float32, narrow=narrow, wide_layers=recipe.int8_layers)
    feature = None
    if recipe.loss == "feature_distillation":
        feature = (last_read(model), last_read(float32))
    program = Program(
        model,
        latents=latents,
        bounds=bounds,
        scales=recipe.scales,
        norms=norms,
        keep=[feature[0]] if feature else [],
    )
    objective = Objective(recipe=recipe, outputs=program.outputs, feature=feature, values=values)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Begun(place=place, program=program, objective=objective, sha256=digest)


def notes_of(begun: Begun) -> tuple[str, ...]:
    """Return what the recipe asks for that has no effect on this graph, in a sentence each."""
    program, recipe, notes = begun.program, begun.objective.recipe, list[str]()
    if recipe.freeze_batch_norm and not len(program.norms):
        notes.append(
            "freeze_batch_norm changed nothing: the graph has no batch normalization of its own behind a convolution "
            "(exporting folds them into the weights before)."
        )
    if recipe.scales == "observed" and not program.observes:
        notes.append(
            "scales 'observed' changed nothing: the engine rounds at no place with one scale, which could follow the "
            "activations."
        )
    return tuple(notes)


def last_read(model: onnx.ModelProto) -> str:
    """Return what the last layer with weights reads.

    Raises:
        ToolchainFailed: there is none.
    """
    wiring = Wiring(model.graph)
    for node in reversed(wiring.nodes):
        if node.op_type in OPERATORS and node.input[1] in wiring.constants and node.input[0] not in wiring.constants:
            return str(node.input[0])
    raise ToolchainFailed("The graph has no layer with weights, whose input could be learned: take 'distillation'.")
