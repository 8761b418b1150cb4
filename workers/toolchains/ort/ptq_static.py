"""Static post-training quantization by ONNX Runtime's quantizer: QuantizeLinear/DequantizeLinear out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata

from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqStatic
from app.domain.variants import Execution
from workers import graphs
from workers.stage_records.common import Progress
from workers.stage_records.making import TransformSpec
from workers.toolchains import graph as onnx_graph
from workers.toolchains.made import Made
from workers.toolchains.ort import sharing
from workers.toolchains.ort.observe import Observed, observe
from workers.toolchains.ort.placement import WEIGHTED, Placement, place, remarks
from workers.toolchains.ort.quiet import quietly

# 7-bit weights, for CPUs without VNNI
_REDUCE_RANGE = False
_ERRORS = (ValueError, TypeError, KeyError, RuntimeError, IndexError, AssertionError)
Overrides = dict[str, list[dict[str, Any]]]

_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def transform(graph: onnx.ModelProto, spec: TransformSpec, scratch: Path, progress: Progress) -> Made:
    """Quantize weights and activations to 8 bits.

    Biases stay in float: they are exact so, and both engines were seen to run int8 kernels all the same.

    Raises:
        ToolchainFailed: the recipe names nodes that the graph has not, or nothing in it can be quantized.
    """
    recipe = spec.recipe
    if not isinstance(recipe, PtqStatic) or spec.calibration is None or not spec.calibration.rows:
        raise ToolchainFailed("Static quantization needs calibration rows: name a calibration dataset.")
    names = [node.name for node in graphs.nodes_of(graph.graph)]
    onnx_graph.check_layers(recipe.float_layers, names, field="float_layers")
    unrounded = _part(graph, place(graph, kinds=onnx_graph.typed(graph), float_layers=recipe.float_layers))
    kinds = onnx_graph.typed(graph)
    wanted = place(graph, kinds=kinds, float_layers=recipe.float_layers)
    _check_any(wanted)
    observed = observe(graph, wanted.activations, spec, scratch=scratch, progress=progress)
    dead = {name for name, seen in observed.items() if seen.range is None}
    placement = _without(wanted, dead, graph)
    _check_any(placement)
    notes = remarks(graph)
    if dead:
        notes += (f"{len(dead)} tensors had no finite value or an infinite range: their layers stayed in float.",)
    sharing.part_weights(graph.graph, placement.nodes)
    kept = {node.name: list(node.input) for node in graph.graph.node}
    made = _quantized(graph, placement, observed=observed, kinds=kinds, recipe=recipe)
    sharing.restore_inputs(
        made.graph, {name: kept[name] for name in (*recipe.float_layers, *unrounded) if name in kept}
    )
    onnx_graph.sort_nodes(made.graph)
    return Made(graph=made, execution=Execution(float_precision=recipe.float_precision), notes=notes)


def _part(graph: onnx.ModelProto, placement: Placement) -> list[str]:
    """Part what is to be quantized from what is not - weights, outputs, names; return the nodes that give outputs."""
    chosen = set(placement.nodes)
    sharing.part_weights(graph.graph, chosen)
    handing_out = sharing.detach_outputs(graph.graph, placement.activations)
    weights = [name for node in graph.graph.node if node.name in chosen for name in node.input]
    sharing.make_room(graph.graph, dict.fromkeys((*placement.activations, *weights)))
    return handing_out


def _check_any(placement: Placement) -> None:
    if not placement.nodes:
        raise ToolchainFailed(
            "ONNX Runtime's quantizer found no layer to quantize: name fewer float_layers, or take a model with "
            "float32 convolutions or matrix products."
        )


def _without(placement: Placement, dead: set[str], graph: onnx.ModelProto) -> Placement:
    chosen = set(placement.nodes)
    nodes = [node for node in graph.graph.node if node.name in chosen and not dead & set(node.input)]
    read = {name for node in nodes for name in node.input}
    return Placement(
        nodes=tuple(node.name for node in nodes),
        activations=tuple(name for name in placement.activations if name in read and name not in dead),
    )


@quietly()
def _quantized(
    graph: onnx.ModelProto,
    placement: Placement,
    *,
    observed: Mapping[str, Observed],
    kinds: Mapping[str, onnx.TypeProto],
    recipe: PtqStatic,
) -> onnx.ModelProto:
    del graph.graph.value_info[:]
    graph.graph.value_info.extend(
        onnx.ValueInfoProto(name=name, type=kinds[name]) for name in placement.activations if name in kinds
    )
    add_infer_metadata(graph)  # or the quantizer would write the graph to disk and infer every shape again
    try:
        made: onnx.ModelProto = quantizer(graph, placement, observed=observed, recipe=recipe).quantize_model()
    except _ERRORS as error:
        said = " ".join(str(error).split())[:200]
        raise ToolchainFailed(f"ONNX Runtime cannot quantize this graph as the recipe says: {said}") from error
    return made


def quantizer(
    graph: onnx.ModelProto, placement: Placement, *, observed: Mapping[str, Observed], recipe: PtqStatic
) -> QDQQuantizer:
    """Say the recipe in ONNX Runtime's words."""
    kinds = sorted({node.op_type for node in graph.graph.node if node.name in set(placement.nodes)})
    unsigned = recipe.activations == "asymmetric"
    named = recipe.activation_dtype
    ranges = {name: _tensor_data(observed[name]) for name in placement.activations}
    return QDQQuantizer(
        graph,
        recipe.weight_granularity == "per_channel",
        _REDUCE_RANGE,
        QuantType.QInt8,
        _TYPES[named] if named != "auto" else _TYPES["uint8" if unsigned else "int8"],
        ranges,
        list(placement.nodes),
        [],
        kinds,
        {
            "ActivationSymmetric": recipe.activations == "symmetric",
            "WeightSymmetric": recipe.weights == "symmetric",
            "OpTypesToExcludeOutputQuantization": kinds,
            "QuantizeBias": False,
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": -1},
            "TensorQuantOverrides": {
                **_unsigned(placement, observed=observed, recipe=recipe),
                **_asymmetric_weights(graph.graph, placement, recipe=recipe),
            },
        },
    )


def _unsigned(placement: Placement, *, observed: Mapping[str, Observed], recipe: PtqStatic) -> Overrides:
    """Give what is never negative the whole unsigned range: symmetric types would leave half of it unused."""
    if recipe.activations == "asymmetric" or recipe.activation_dtype == "int8":
        return {}
    whole = {"quant_type": QuantType.QUInt8, "symmetric": False}
    return {name: [dict(whole)] for name in placement.activations if observed[name].non_negative}


def _asymmetric_weights(graph: onnx.GraphProto, placement: Placement, *, recipe: PtqStatic) -> Overrides:
    """Ask for zero points weight by weight: with a scale per channel the quantizer gives none of its own accord."""
    if recipe.weights == "symmetric" or recipe.weight_granularity == "per_tensor":
        return {}
    chosen, tensors = set(placement.nodes), onnx_graph.constants(graph)
    weighted = [node for node in graph.node if node.name in chosen and node.op_type in WEIGHTED]
    axes = {node.input[1]: onnx_graph.channel_axis(node) for node in weighted if node.input[1] in tensors}
    return {name: [{"axis": axis % len(tensors[name].dims), "symmetric": False}] for name, axis in axes.items()}


def _tensor_data(seen: Observed) -> TensorData:
    low, high = seen.range or (0.0, 0.0)
    return TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
