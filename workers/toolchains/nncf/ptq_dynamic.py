"""Dynamic quantization: int8 weights in the file, activations quantized by the engine while they pass."""

from pathlib import Path

import onnx

from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqDynamic
from app.domain.variants import Execution
from workers import graphs
from workers.stage_records.common import Progress
from workers.stage_records.making import TransformSpec
from workers.toolchains.graph import check_layers
from workers.toolchains.made import Made
from workers.toolchains.nncf import weights
from workers.toolchains.nncf.compression import INT8, Compression, compress
from workers.toolchains.nncf.storing import Storage
from workers.toolchains.nncf.weights import Weight

_STEP = 16
_NAMES_SHOWN = 5
_MOST_CHARACTERS = 120


def transform(graph: onnx.ModelProto, spec: TransformSpec, scratch: Path, progress: Progress) -> Made:
    """Store the weights in int8, one scale per output channel, and have the engine quantize activations in groups.

    Matrix products run in int8. Lookup tables and recurrent layers are stored in int8 and run in float; convolutions
    stay in float altogether.

    Raises:
        ToolchainFailed: no matrix product has weights, or none is as long as a group; or the recipe names nodes that
            the graph has not.
    """
    recipe = spec.recipe
    if not isinstance(recipe, PtqDynamic) or recipe.group_size is None:
        raise ToolchainFailed("This handler stores weights: give it a recipe of the technique ptq_dynamic.")
    check_layers(recipe.float_layers, (node.name for node in graphs.nodes_of(graph.graph)), field="float_layers")
    compression = Compression(
        storage=Storage(bits=INT8, symmetric=recipe.weights == "symmetric"),
        kinds=(*weights.MATRIX_PRODUCTS, *weights.LOOKUPS, *weights.RECURRENT),
        float_layers=recipe.float_layers,
    )
    short = _check_groups(compression.of(graph), recipe.group_size)
    progress(0.0, "storing the weights")
    made = compress(graph, compression, scratch=scratch)
    return Made(
        graph=made.graph,
        execution=Execution(float_precision=recipe.float_precision, dynamic_group_size=recipe.group_size),
        notes=(*made.notes, *_notes(made.graph, made.kinds, short=short)),
    )


def _check_groups(found: list[Weight], group_size: int) -> tuple[str, ...]:
    """Return the layers that are too short for one group, whose activations OpenVINO leaves in float.

    Seen in OpenVINO 2026.4: only groups of a multiple of 16 are quantized at all, and only where one fits.
    """
    products = [weight for weight in found if weight.kind in weights.MATRIX_PRODUCTS]
    if not products:
        raise ToolchainFailed(
            "No MatMul or Gemm of the graph has weights to quantize, and dynamic quantization is for these: name fewer "
            "float_layers, or take weight_only or ptq_static."
        )
    if group_size % _STEP:
        raise ToolchainFailed(
            f"group_size is {group_size}, but OpenVINO quantizes activations in groups of a multiple of {_STEP} only: "
            f"take {group_size // _STEP * _STEP}."
        )
    lengths = {weight.layers[0]: weight.shape[weight.input_axis or 0] for weight in products}
    short = tuple(name for name, length in lengths.items() if length < group_size)
    if len(short) == len(lengths):
        raise ToolchainFailed(
            f"group_size {group_size} is more than the {max(lengths.values())} inputs of any matrix product, and so "
            "none would run in int8: take a smaller one, or weight_only."
        )
    return short


def _notes(graph: onnx.ModelProto, kinds: tuple[str, ...], *, short: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    if short:
        notes.append(
            f"{len(short)} matrix products are shorter than group_size, and their activations stay in float: "
            f"{', '.join(short[:_NAMES_SHOWN])[:_MOST_CHARACTERS]}."
        )
    stored = [kind for kind in kinds if kind in weights.RECURRENT]
    if stored:
        notes.append(f"{', '.join(stored)} weights are stored in int8, but the engine runs these layers in float.")
    convolutions = sum(node.op_type in weights.CONVOLUTIONS for node in graphs.nodes_of(graph.graph))
    if convolutions:
        notes.append(
            f"{convolutions} convolutions stay in float: no engine here quantizes their activations on the fly."
        )
    return tuple(notes)
