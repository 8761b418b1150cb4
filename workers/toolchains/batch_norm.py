"""Batch normalizations put into the layers before them (Jacob et al. 2018, arXiv:1712.05877, equation 14)."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from workers.toolchains import graph as onnx_graph

_EPSILON = 1e-5
_PARAMETERS = 5
Doubles = npt.NDArray[np.float64]


def fold_batch_norms(graph: onnx.GraphProto, *, keep: frozenset[str]) -> None:
    """Fold every BatchNormalization whose input comes from a Conv, ConvTranspose or Gemm and is read by nobody else.

    The layer's weight becomes `w * gamma / sqrt(var + epsilon)`, its bias `(b - mean) * gamma / sqrt(var + epsilon) +
    beta`. Weights that other nodes read too are copied. A normalization named in `keep`, or whose numbers are not
    constant float32, stays.
    """
    remaining = [
        node
        for node in graph.node
        if node.op_type != "BatchNormalization" or node.name in keep or not _folded(graph, node)
    ]
    if len(remaining) < len(graph.node):
        onnx_graph.keep_nodes(graph, remaining)


def _folded(graph: onnx.GraphProto, norm: onnx.NodeProto) -> bool:
    layer = onnx_graph.writers(graph).get(norm.input[0])
    readers = onnx_graph.readers(graph)
    if layer is None or layer.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(norm.output) > 1:
        return False
    if len(readers[norm.input[0]]) > 1 or norm.input[0] in onnx_graph.output_names(graph):
        return False
    if onnx_graph.attribute_int(norm, "training_mode", default=0):
        return False
    known = onnx_graph.constants(graph)
    numbers = [_array(known, name) for name in norm.input[1:_PARAMETERS]]
    weight, bias = _weights(layer, known)
    if weight is None or bias is None or any(number is None for number in numbers):
        return False
    gamma, beta, mean, variance = (number for number in numbers if number is not None)
    factor = gamma / np.sqrt(variance + _epsilon(norm))
    made_weight = _scaled(layer, weight, factor)
    made_bias = (bias - mean) * factor + beta
    if made_weight is None or not (_fits(made_weight) and _fits(made_bias)):
        return False
    _write(graph, layer, made_weight, place=1, readers=readers)
    _write(graph, layer, made_bias, place=2, readers=readers)
    layer.output[0] = norm.output[0]
    return True


def _weights(layer: onnx.NodeProto, known: Mapping[str, TensorProto]) -> tuple[Doubles | None, Doubles | None]:
    """Return a layer's weight and bias, zeros where it has none; None for what is not constant or not plain."""
    weight = _array(known, layer.input[1])
    if weight is None:
        return None, None
    channels = _channels(layer, weight)
    if len(layer.input) <= 2 or not layer.input[2]:  # noqa: PLR2004
        return weight, np.zeros(channels)
    bias = _array(known, layer.input[2])
    scaled = any(attribute.name == "beta" and attribute.f != 1 for attribute in layer.attribute)
    return weight, bias if bias is not None and bias.shape == (channels,) and not scaled else None


def _channels(layer: onnx.NodeProto, weight: Doubles) -> int:
    groups = onnx_graph.attribute_int(layer, "group", default=1) if layer.op_type == "ConvTranspose" else 1
    return int(weight.shape[onnx_graph.channel_axis(layer)]) * groups


def _scaled(layer: onnx.NodeProto, weight: Doubles, factor: Doubles) -> Doubles | None:
    """Return the weight with each output channel times its factor."""
    if factor.shape != (_channels(layer, weight),):
        return None
    if layer.op_type == "Gemm":
        return weight * (factor[:, None] if onnx_graph.channel_axis(layer) == 0 else factor)
    if layer.op_type == "Conv":
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    # [inputs, outputs / group, ...]: the inputs come group by group, and so do the outputs they make
    groups = onnx_graph.attribute_int(layer, "group", default=1)
    parted = weight.reshape(groups, -1, *weight.shape[1:])
    return (parted * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _write(
    graph: onnx.GraphProto,
    layer: onnx.NodeProto,
    array: Doubles,
    *,
    place: int,
    readers: Mapping[str, list[onnx.NodeProto]],
) -> None:
    name = layer.input[place] if len(layer.input) > place else ""
    single = array.astype(np.float32)
    if name and len(readers[name]) == 1 and name not in onnx_graph.output_names(graph):
        onnx_graph.replace_constant(onnx_graph.constants(graph)[name], single)
        return
    made = onnx_graph.add_constant(graph, single, like=name or f"{layer.name}_bias")
    if len(layer.input) > place:
        layer.input[place] = made
    else:
        layer.input.append(made)


def _array(known: Mapping[str, TensorProto], name: str) -> Doubles | None:
    tensor = known.get(name)
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return None
    return np.asarray(numpy_helper.to_array(tensor), np.float64)


def _epsilon(norm: onnx.NodeProto) -> float:
    return next((float(attribute.f) for attribute in norm.attribute if attribute.name == "epsilon"), _EPSILON)


def _fits(array: Doubles) -> bool:
    return bool(np.isfinite(array).all() and (np.abs(array) <= np.finfo(np.float32).max).all())
