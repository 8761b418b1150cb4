"""NNCF's post-training pipeline, put together so that its memory does not grow with the number of rows."""

from dataclasses import dataclass
from typing import Any

import nncf
import onnx
from nncf.onnx.graph.nncf_graph_builder import GraphConverter
from nncf.onnx.graph.passes import apply_preprocess_passes, compress_quantize_weights_transformation
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
from nncf.quantization.algorithms.bias_correction.algorithm import BIAS_CORRECTION_THRESHOLD
from nncf.quantization.algorithms.pipeline import Pipeline, collect_statistics
from nncf.quantization.algorithms.post_training.pipeline import create_ptq_pipeline
from nncf.quantization.algorithms.smooth_quant.algorithm import SmoothQuant

from workers.toolchains.nncf.aside import weights_back
from workers.toolchains.nncf.bias_correction import FullBiasCorrection
from workers.toolchains.nncf.calibration import CalibrationRows
from workers.toolchains.nncf.observers import watch_magnitudes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do to a graph.

    Attributes:
        symmetric: the activations.
        percentile: for an observer on histograms; None for the least squared error.
        correction: `none`, `fast` or `full`.
        correction_rows: how many of the rows correct biases.
    """

    parameters: AdvancedQuantizationParameters
    transformer: bool
    ignored: tuple[str, ...]
    symmetric: bool
    percentile: float | None
    correction: str
    correction_rows: int


def quantize(light: onnx.ModelProto, rows: CalibrationRows, plan: Plan) -> onnx.ModelProto:
    """Return the graph with QuantizeLinear/DequantizeLinear around its layers and weights stored in 8 bits.

    The same steps as `nncf.quantize`, which has no say on how many rows the bias correction keeps: of these it keeps
    whole inputs (`full`) or one mean per channel (`fast`), of all others nothing.

    Args:
        light: the graph with its weights aside.

    Raises:
        ERRORS: NNCF does not understand the graph.
    """
    prepared = apply_preprocess_passes(light)
    layers = GraphConverter.create_nncf_graph(prepared)
    pipeline = _pipeline(plan, rows=len(rows))
    points = pipeline.get_statistic_points_for_step(0, prepared, layers)
    watch_magnitudes(points, symmetric=plan.symmetric, percentile=plan.percentile)
    statistics = collect_statistics(points, prepared, layers, nncf.Dataset(rows))
    made: onnx.ModelProto = pipeline.run_from_step(prepared, None, layers, step_index_to_statistics={0: statistics})
    weights_back(made)
    compress_quantize_weights_transformation(made)
    return made


def smooth(light: onnx.ModelProto, rows: CalibrationRows, alpha: float) -> onnx.ModelProto:
    """Return the graph with activations scaled down and weights up, channel by channel, in front of matrix products.

    Xiao et al. 2022, arXiv:2211.10438, equation 4. In float the graph computes what it did before.

    Args:
        light: the graph with its weights aside; what is returned needs its file as well.

    Raises:
        ERRORS: NNCF does not understand the graph.
    """
    prepared = apply_preprocess_passes(light)
    step = SmoothQuant(len(rows), inplace_statistics=False, alpha_map={"convolution": -1.0, "matmul": alpha})
    made: onnx.ModelProto = Pipeline([[step]]).run_from_step(
        prepared, nncf.Dataset(rows), GraphConverter.create_nncf_graph(prepared)
    )
    return made


def _pipeline(plan: Plan, *, rows: int) -> Pipeline:
    pipeline: Pipeline = create_ptq_pipeline(
        subset_size=rows,
        fast_bias_correction=True,
        # SmoothQuant comes with this type alone; `smooth` does it for any graph
        model_type=nncf.ModelType.TRANSFORMER if plan.transformer else None,
        ignored_scope=nncf.IgnoredScope(names=list(plan.ignored)) if plan.ignored else None,
        advanced_parameters=plan.parameters,
    )
    last: list[Any] = pipeline.pipeline_steps[-1]
    if plan.correction == "full":
        last[-1] = FullBiasCorrection(plan.correction_rows, BIAS_CORRECTION_THRESHOLD)
    if plan.correction == "fast":
        last[-1].subset_size = plan.correction_rows
    return pipeline
