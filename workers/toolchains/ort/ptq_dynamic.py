"""Dynamic quantization by ONNX Runtime's quantizer: DynamicQuantizeLinear, MatMulInteger and ConvInteger out.

ONNX Runtime runs them in int8. OpenVINO was seen to compute them in float, slower than the float32 artifact: the report
of the variant shows it.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode, add_infer_metadata

from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqDynamic
from app.domain.variants import Execution
from workers import graphs
from workers.stage_records.common import Progress
from workers.stage_records.making import TransformSpec
from workers.toolchains import graph as onnx_graph
from workers.toolchains.made import Made
from workers.toolchains.ort import sharing
from workers.toolchains.ort.placement import remarks
from workers.toolchains.ort.quiet import quietly

# 7-bit weights, for CPUs without VNNI
_REDUCE_RANGE = False
_STATIC = False
_ERRORS = (ValueError, TypeError, KeyError, RuntimeError, IndexError, AssertionError, AttributeError)
# Where each operator keeps its weight, or its lookup table.
_WEIGHT_AT = {"Conv": 1, "MatMul": 1, "Gemm": 1, "Gather": 0}
_MATRIX_AXES = 2


def transform(graph: onnx.ModelProto, spec: TransformSpec, _scratch: Path, progress: Progress) -> Made:
    """Store the weights of matrix products, convolutions and lookup tables in 8 bits, and quantize the rest on the way.

    Raises:
        ToolchainFailed: the recipe names nodes that the graph has not, or nothing in it can be quantized.
    """
    recipe = spec.recipe
    if not isinstance(recipe, PtqDynamic):
        raise TypeError("This is dynamic quantization alone.")
    onnx_graph.check_layers(
        recipe.float_layers, (node.name for node in graphs.nodes_of(graph.graph)), field="float_layers"
    )
    progress(0.1, "quantizing the weights")
    kinds = onnx_graph.typed(graph)
    chosen = [node for node in graph.graph.node if _takes(node, graph.graph, kinds)]
    chosen = [node for node in chosen if node.name not in recipe.float_layers]
    if not any(node.op_type != "Gather" for node in chosen):
        raise ToolchainFailed(
            "ONNX Runtime's quantizer found no layer to quantize: name fewer float_layers, or take a model with "
            "float32 convolutions or matrix products whose weights are constant."
        )
    notes = (*remarks(graph), *_remarks(chosen, recipe))
    made = _quantized(graph, [node.name for node in chosen], kinds=kinds, recipe=recipe)
    return Made(graph=made, execution=Execution(float_precision=recipe.float_precision), notes=notes)


def _takes(node: onnx.NodeProto, graph: onnx.GraphProto, kinds: Mapping[str, onnx.TypeProto]) -> bool:
    place = _WEIGHT_AT.get(node.op_type)
    if place is None or not all(name in kinds for name in node.input[:2]):
        return False
    weight = onnx_graph.constants(graph).get(node.input[place])
    if weight is None or weight.data_type != TensorProto.FLOAT or len(weight.dims) < _MATRIX_AXES:
        return False
    if node.op_type == "Gather":
        return True
    fixed = {tensor.name for tensor in graph.initializer}
    return node.input[0] not in fixed and onnx_graph.is_float32(kinds[node.input[0]]) and _is_plain(node)


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a Gemm is a product and a bias alone, which is what the quantizer makes of it."""
    given = {attribute.name: attribute for attribute in node.attribute}
    scaled = any(name in given and given[name].f != 1 for name in ("alpha", "beta"))
    return node.op_type != "Gemm" or not (scaled or ("transA" in given and given["transA"].i))


@quietly()
def _quantized(
    graph: onnx.ModelProto, names: list[str], *, kinds: Mapping[str, onnx.TypeProto], recipe: PtqDynamic
) -> onnx.ModelProto:
    sharing.part_weights(graph.graph, names)
    sharing.own_weights(graph.graph, "Gemm")  # the quantizer turns a Gemm's weight round, whoever else reads it
    inputs = {name for node in graph.graph.node if node.name in names for name in node.input}
    del graph.graph.value_info[:]  # exporters leave shapes there that contradict the graph
    add_infer_metadata(graph)
    types = sorted({"MatMul" if _kind == "Gemm" else _kind for _kind in _kinds_of(graph, names)})
    try:
        quantizer = ONNXQuantizer(
            graph,
            recipe.weight_granularity == "per_channel",
            _REDUCE_RANGE,
            QuantizationMode.IntegerOps,
            _STATIC,
            QuantType.QInt8,
            QuantType.QUInt8,
            None,
            [each for name in names for each in (name, f"{name}_MatMul")],  # what the quantizer makes of a Gemm
            [],
            types,
            {"WeightSymmetric": recipe.weights == "symmetric", "MatMulConstBOnly": True},
        )
        for name in inputs & set(kinds):  # shapes that it could not infer anew
            quantizer.value_infos.setdefault(name, onnx.ValueInfoProto(name=name, type=kinds[name]))
        made: onnx.ModelProto = quantizer.quantize_model()
    except _ERRORS as error:
        said = " ".join(str(error).split())[:200]
        raise ToolchainFailed(f"ONNX Runtime cannot quantize this graph as the recipe says: {said}") from error
    graphs.keep_standard_opset(made)
    onnx_graph.sort_nodes(made.graph)
    return made


def _kinds_of(graph: onnx.ModelProto, names: list[str]) -> set[str]:
    wanted = set(names)
    return {node.op_type for node in graph.graph.node if node.name in wanted}


def _remarks(chosen: list[onnx.NodeProto], recipe: PtqDynamic) -> tuple[str, ...]:
    convolutions = sum(node.op_type == "Conv" for node in chosen)
    if convolutions and recipe.weight_granularity == "per_channel":
        return (f"Convolutions have one scale per weight, {convolutions} of them: ONNX Runtime gives them no more.",)
    return ()
