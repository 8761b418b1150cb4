"""Static post-training quantization by NNCF: ranges from calibration rows, QuantizeLinear/DequantizeLinear out."""

from pathlib import Path

import onnx
from nncf.common.quantization.structs import QuantizationScheme
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
    OverflowFix,
    QuantizationParameters,
)
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqStatic
from app.domain.variants import Execution
from workers import graphs
from workers.stage_records.common import Progress, RowSource
from workers.stage_records.making import TransformSpec
from workers.toolchains.graph import check_layers, constants
from workers.toolchains.made import Made
from workers.toolchains.nncf.activations import bytes_of_row, to_int8, to_uint8
from workers.toolchains.nncf.aside import weights_aside
from workers.toolchains.nncf.attention import has_attention
from workers.toolchains.nncf.bias_correction import rows_for_full
from workers.toolchains.nncf.calibration import CalibrationRows, first_row
from workers.toolchains.nncf.constants import only_inputs
from workers.toolchains.nncf.failures import ERRORS, said, settle
from workers.toolchains.nncf.pipeline import Plan, quantize, smooth
from workers.toolchains.nncf.weights import MATRIX_PRODUCTS

MOST_FAST_ROWS = 1000
"""Of `fast` bias correction: NNCF keeps every row's mean of every channel."""

HISTOGRAM_OBSERVERS = ("mse", "percentile")
OBSERVED_BYTES = 1 << 31
LEAST_OBSERVED = 32


def transform(graph: onnx.ModelProto, spec: TransformSpec, scratch: Path, progress: Progress) -> Made:
    """Quantize weights and activations to 8 bits.

    Every row sets ranges, but for the observers `mse` and `percentile`, which count every value: they see as many rows
    as have `OBSERVED_BYTES` of activations. Bias correction keeps something of each row it sees, and so sees fewer:
    `full` a fifth of them, and no more than `KEPT_BYTES` hold; `fast` at most `MOST_FAST_ROWS`. Rows left out are
    spread evenly. NNCF has no say on the type of integers; they are shifted afterwards.

    Raises:
        ToolchainFailed: the recipe names nodes that the graph has not, or asks for what NNCF cannot do here.
    """
    recipe = spec.recipe
    if not isinstance(recipe, PtqStatic) or spec.calibration is None or not spec.calibration.rows:
        raise ToolchainFailed("Static quantization needs calibration rows: name a calibration dataset.")
    check_layers(recipe.float_layers, (node.name for node in graphs.nodes_of(graph.graph)), field="float_layers")
    _check_observer(recipe)
    settle()
    only_inputs(graph)
    try:
        made, notes = _quantized(graph, spec, recipe, spec.calibration, scratch=scratch, progress=progress)
    except ERRORS as error:
        raise _failure(error, recipe) from error
    if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
        raise ToolchainFailed(
            "NNCF found no layer to quantize: name fewer float_layers, or take a model with convolutions or matrix "
            "products."
        )
    _recode(made, recipe)
    return Made(graph=made, execution=Execution(float_precision=recipe.float_precision), notes=notes)


def _quantized(
    graph: onnx.ModelProto,
    spec: TransformSpec,
    recipe: PtqStatic,
    calibration: RowSource,
    *,
    scratch: Path,
    progress: Progress,
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    with weights_aside(graph, scratch) as light:
        row_bytes = bytes_of_row(light, first_row(calibration, spec.signature, scratch=scratch))
    observed = len(calibration.rows)
    if recipe.observer in HISTOGRAM_OBSERVERS:
        observed = min(observed, max(OBSERVED_BYTES // max(row_bytes, 1), LEAST_OBSERVED))
    full = recipe.bias_correction == "full"
    plan = Plan(
        parameters=parameters(recipe),
        transformer=has_attention(graph),
        # names of nodes in inner graphs, which NNCF leaves in float anyway, would be unknown to it
        ignored=tuple(name for name in recipe.float_layers if name in {node.name for node in graph.graph.node}),
        symmetric=recipe.activations == "symmetric",
        percentile=recipe.percentile,
        correction=recipe.bias_correction or "none",
        correction_rows=rows_for_full(observed, row_bytes=row_bytes) if full else min(observed, MOST_FAST_ROWS),
    )
    rows = CalibrationRows(
        calibration,
        spec.signature,
        scratch=scratch,
        progress=progress,
        most=observed,
        ahead=plan.correction_rows,
    )
    with weights_aside(graph, scratch) as light:
        if recipe.smooth_quant is None:
            made = quantize(light, rows, plan)
        else:
            with weights_aside(smooth(light, rows, recipe.smooth_quant), scratch) as smoothed:
                made = quantize(smoothed, rows, plan)
    return made, _notes(graph, recipe, plan, observed=observed, count=len(calibration.rows))


def parameters(recipe: PtqStatic) -> AdvancedQuantizationParameters:
    """Say the recipe in NNCF's words."""
    return AdvancedQuantizationParameters(
        # half the weight's range saves CPUs without VNNI from overflow; NNCF offers it for symmetric weights only
        overflow_fix=OverflowFix.DISABLE if recipe.weights == "asymmetric" else None,
        disable_bias_correction=recipe.bias_correction == "none",
        activations_quantization_params=QuantizationParameters(
            mode=QuantizationScheme(recipe.activations),
            per_channel=recipe.activation_granularity == "per_channel",
        ),
        weights_quantization_params=QuantizationParameters(
            mode=QuantizationScheme(recipe.weights),
            per_channel=recipe.weight_granularity == "per_channel",
        ),
        # `watch_magnitudes` makes the ranges of its histograms
        activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM
        if recipe.observer in HISTOGRAM_OBSERVERS
        else RangeEstimatorParametersSet.MINMAX,
        smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
    )


def _check_observer(recipe: PtqStatic) -> None:
    if recipe.observer in HISTOGRAM_OBSERVERS and recipe.activation_granularity == "per_channel":
        raise ToolchainFailed(
            f"The observer {recipe.observer!r} has one range for a whole tensor, not one per channel: take min_max."
        )


def _recode(made: onnx.ModelProto, recipe: PtqStatic) -> None:
    if recipe.activation_dtype == "uint8":
        to_uint8(made)
    if recipe.activation_dtype == "int8":
        to_int8(made, symmetric=recipe.activations == "symmetric")


def _notes(graph: onnx.ModelProto, recipe: PtqStatic, plan: Plan, *, observed: int, count: int) -> tuple[str, ...]:
    notes = []
    weights = set(constants(graph.graph))
    if recipe.smooth_quant is not None and not any(
        node.op_type in MATRIX_PRODUCTS and set(node.input[:2]) & weights for node in graph.graph.node
    ):
        notes.append("smooth_quant had no place: it is for matrix products with weights, and the graph has none.")
    if observed < count:
        notes.append(f"The observer {recipe.observer} saw {observed} of the {count} rows, to bound its time.")
    fifth = max(count // 5, 1) if plan.correction == "full" else count
    if plan.correction != "none" and plan.correction_rows < fifth:
        notes.append(f"Bias correction used {plan.correction_rows} of the {count} rows, to bound its memory.")
    return tuple(notes)


def _failure(error: Exception, recipe: PtqStatic) -> ToolchainFailed:
    words = " ".join(str(error).split())
    if "incompatible with HW capabilities" in words and recipe.activation_granularity == "per_channel":
        layer = words[:300].rpartition("location:")[2].strip()
        return ToolchainFailed(
            f"Layer {layer!r} takes one scale for its whole input, not one per channel: "
            "set activation_granularity to per_tensor."
        )
    return ToolchainFailed(f"NNCF cannot quantize this graph as the recipe says: {said(error)}.")
