"""Weight-only quantization by NNCF: integers in the file, floats in the arithmetic."""

from pathlib import Path

import onnx

from app.domain.errors import ToolchainFailed
from app.domain.recipes import WeightOnly
from app.domain.variants import Execution
from workers import graphs
from workers.stage_records.common import Progress
from workers.stage_records.making import TransformSpec
from workers.toolchains.graph import check_layers
from workers.toolchains.made import Made
from workers.toolchains.nncf import weights
from workers.toolchains.nncf.calibration import CalibrationRows
from workers.toolchains.nncf.compression import Compression, Learning, compress
from workers.toolchains.nncf.storing import Storage

MOST_ROWS = 512
"""NNCF keeps a mean of every row for every layer; more than these teach it no better."""


def transform(graph: onnx.ModelProto, spec: TransformSpec, scratch: Path, progress: Progress) -> Made:
    """Store the weights in 8 or 4 bits; the engine computes in float.

    Matrix products, lookup tables, convolutions and recurrent layers; a weight that would not get smaller stays. Only
    matrix products take groups and are learned (`awq`; NNCF's scale estimation), from
    at most 512 rows; everything else has one scale per row, output channel or row of a gate, rounded to nearest.

    Raises:
        ToolchainFailed: the graph has nothing to store, or not as the recipe says.
    """
    recipe = spec.recipe
    if not isinstance(recipe, WeightOnly):
        raise ToolchainFailed("This handler stores weights: give it a recipe of the technique weight_only.")
    check_layers(recipe.float_layers, (node.name for node in graphs.nodes_of(graph.graph)), field="float_layers")
    compression = Compression(
        storage=Storage(bits=recipe.bits, symmetric=recipe.weights == "symmetric", group_size=recipe.group_size),
        kinds=tuple(kind for kind in weights.KINDS if recipe.embeddings or kind not in weights.LOOKUPS),
        float_layers=recipe.float_layers,
    )
    progress(0.0, "storing the weights")
    made = compress(graph, compression, scratch=scratch, learning=_learning(spec, recipe, scratch, progress))
    return Made(
        graph=made.graph,
        execution=Execution(float_precision=recipe.float_precision),
        notes=(*made.notes, *_notes(recipe, made.kinds)),
    )


def _learning(spec: TransformSpec, recipe: WeightOnly, scratch: Path, progress: Progress) -> Learning | None:
    if not (recipe.awq or recipe.scale_estimation):
        return None
    if spec.calibration is None or not spec.calibration.rows:
        raise ToolchainFailed("awq and scale_estimation learn from calibration rows: name a calibration dataset.")
    rows = CalibrationRows(spec.calibration, spec.signature, scratch=scratch, progress=progress, most=MOST_ROWS)
    return Learning(rows=rows, awq=recipe.awq, scale_estimation=recipe.scale_estimation)


def _notes(recipe: WeightOnly, kinds: tuple[str, ...]) -> tuple[str, ...]:
    others = [kind for kind in kinds if kind not in weights.MATRIX_PRODUCTS]
    notes = []
    if others and recipe.group_size is not None:
        notes.append(f"group_size is for matrix products: {', '.join(others)} have one scale per row or channel.")
    if others and (recipe.awq or recipe.scale_estimation):
        notes.append(f"awq and scale_estimation are for matrix products: {', '.join(others)} are rounded to nearest.")
    return tuple(notes)
