"""Static post-training quantization by NNCF: ranges from calibration rows, QuantizeLinear/DequantizeLinear out."""

import logging
from difflib import get_close_matches
from pathlib import Path

import nncf
import nncf.errors
import onnx
import onnxruntime
from nncf.common.quantization.structs import QuantizationScheme
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix, QuantizationParameters

from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqStatic
from app.domain.variants import Execution
from workers.stages import Progress, TransformSpec
from workers.toolchains.finish import ONNXRUNTIME_ERRORS
from workers.toolchains.made import Made
from workers.toolchains.nncf.calibration import CalibrationRows

_NAMES_SHOWN = 5
_FATAL = 4
_NNCF_ERRORS = tuple(
    error for error in vars(nncf.errors).values() if isinstance(error, type) and issubclass(error, Exception)
)
# What NNCF lets through from its own code when it meets a graph it does not understand.
_ERRORS = (*_NNCF_ERRORS, *ONNXRUNTIME_ERRORS, ValueError, RuntimeError, KeyError, NotImplementedError)


def transform(graph: onnx.ModelProto, spec: TransformSpec, scratch: Path, progress: Progress) -> Made:
    """Quantize weights and activations to 8 bits.

    Raises:
        ToolchainFailed: the recipe names nodes that the graph has not, or asks for what NNCF cannot do here.
    """
    recipe = spec.recipe
    if not isinstance(recipe, PtqStatic) or spec.calibration is None or not spec.calibration.rows:
        raise ToolchainFailed("Static quantization needs calibration rows: name a calibration dataset.")
    _check_float_layers(graph, recipe)
    nncf.set_log_level(logging.WARNING)
    # in the sandbox it complains of each thread it may not pin; what fails is raised besides
    onnxruntime.set_default_logger_severity(_FATAL)
    wanted = parameters(recipe)
    rows = CalibrationRows(spec.calibration, spec.signature, scratch=scratch, progress=progress)
    try:
        made: onnx.ModelProto = nncf.quantize(
            graph,
            nncf.Dataset(rows),
            subset_size=len(rows),
            fast_bias_correction=recipe.bias_correction == "fast",
            ignored_scope=nncf.IgnoredScope(names=list(recipe.float_layers)) if recipe.float_layers else None,
            advanced_parameters=wanted,
        )
    except _ERRORS as error:
        raise _failure(error, recipe) from error
    if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
        raise ToolchainFailed(
            "NNCF found no layer to quantize: name fewer float_layers, or take a model with convolutions or matrix "
            "products."
        )
    return Made(graph=made, execution=Execution(float_precision=recipe.float_precision))


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
    )


def _check_float_layers(graph: onnx.ModelProto, recipe: PtqStatic) -> None:
    names = [node.name for node in graph.graph.node]
    for name in recipe.float_layers:
        if name not in names:
            near = get_close_matches(name, names, n=_NAMES_SHOWN, cutoff=0.3) or names[:_NAMES_SHOWN]
            raise ToolchainFailed(
                f"float_layers names {name[:80]!r}, but the graph has no such node; among its {len(names)} nodes are "
                f"{', '.join(near)}."
            )


def _failure(error: Exception, recipe: PtqStatic) -> ToolchainFailed:
    said = " ".join(str(error).split())[:300]
    if "incompatible with HW capabilities" in said and recipe.activation_granularity == "per_channel":
        layer = said.rpartition("location:")[2].strip()
        return ToolchainFailed(
            f"Layer {layer!r} takes one scale for its whole input, not one per channel: "
            "set activation_granularity to per_tensor."
        )
    return ToolchainFailed(f"NNCF cannot quantize this graph as the recipe says: {said}")
