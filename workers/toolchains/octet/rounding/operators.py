"""The ONNX operators that block reconstruction runs in torch, where gradients can pass: one line each."""

from collections.abc import Iterable, Mapping

import onnx
import torch
from torch import Tensor

from workers.graphs import STANDARD_DOMAINS
from workers.toolchains.octet.rounding import layout, pointwise, recurrent, windows
from workers.toolchains.octet.rounding.pointwise import NotTaken, Operator, binary, reducer, unary

__all__ = ["OPERATORS", "NotTaken", "run", "untaken"]

OPERATORS: dict[str, Operator] = {
    "Conv": windows.convolve,
    "ConvTranspose": windows.convolve_transposed,
    "MaxPool": windows.max_pool,
    "AveragePool": windows.average_pool,
    "GlobalAveragePool": windows.global_average_pool,
    "GlobalMaxPool": windows.global_max_pool,
    "Resize": windows.resize,
    "DepthToSpace": windows.depth_to_space,
    "SpaceToDepth": windows.space_to_depth,
    "Gemm": pointwise.gemm,
    "MatMul": binary(torch.matmul),
    "Add": binary(torch.add),
    "Sub": binary(torch.sub),
    "Mul": binary(torch.mul),
    "Div": pointwise.divide,
    "Pow": binary(torch.pow),
    "Max": binary(torch.maximum),
    "Min": binary(torch.minimum),
    "Equal": binary(torch.eq),
    "Greater": binary(torch.gt),
    "GreaterOrEqual": binary(torch.ge),
    "Less": binary(torch.lt),
    "LessOrEqual": binary(torch.le),
    "And": binary(torch.logical_and),
    "Or": binary(torch.logical_or),
    "Not": unary(torch.logical_not),
    "IsNaN": unary(torch.isnan),
    "Mod": pointwise.modulo,
    "Sum": pointwise.total,
    "Einsum": pointwise.einsum,
    "CumSum": pointwise.running_sum,
    "Sqrt": unary(torch.sqrt),
    "Exp": unary(torch.exp),
    "Log": unary(torch.log),
    "Abs": unary(torch.abs),
    "Neg": unary(torch.neg),
    "Reciprocal": unary(torch.reciprocal),
    "Erf": unary(torch.erf),
    "Floor": unary(torch.floor),
    "Ceil": unary(torch.ceil),
    "Round": unary(torch.round),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Cos": unary(torch.cos),
    "Relu": unary(torch.relu),
    "Sigmoid": unary(torch.sigmoid),
    "Tanh": unary(torch.tanh),
    "Softplus": unary(torch.nn.functional.softplus),
    "Softsign": unary(torch.nn.functional.softsign),
    "Mish": unary(torch.nn.functional.mish),
    "Selu": pointwise.selu,
    "Celu": pointwise.celu,
    "Identity": unary(lambda x: x),
    "Dropout": unary(lambda x: x),
    "Clip": pointwise.clip,
    "LeakyRelu": pointwise.leaky_relu,
    "PRelu": pointwise.p_relu,
    "Elu": pointwise.elu,
    "HardSigmoid": pointwise.hard_sigmoid,
    "HardSwish": pointwise.hard_swish,
    "Gelu": pointwise.gelu,
    "Softmax": pointwise.softmax,
    "LogSoftmax": pointwise.log_softmax,
    "LayerNormalization": pointwise.layer_normalization,
    "BatchNormalization": pointwise.batch_normalization,
    "InstanceNormalization": pointwise.instance_normalization,
    "ReduceMean": reducer(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": reducer(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": reducer(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": reducer(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceL1": reducer(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": reducer(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep)),
    "ReduceSumSquare": reducer(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "ReduceLogSumExp": reducer(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "LSTM": recurrent.lstm,
    "GRU": recurrent.gru,
    "QuantizeLinear": pointwise.quantize,
    "DequantizeLinear": pointwise.dequantize,
    "Reshape": layout.reshape,
    "Flatten": layout.flatten,
    "Transpose": layout.transpose,
    "Squeeze": layout.squeeze,
    "Unsqueeze": layout.unsqueeze,
    "Gather": layout.gather,
    "Concat": layout.concat,
    "Split": layout.split,
    "Slice": layout.cut,
    "Pad": layout.pad,
    "Cast": layout.cast,
    "Shape": layout.shape,
    "Expand": layout.expand,
    "Where": layout.where,
    "Tile": layout.tile,
    "Range": layout.count,
    "ConstantOfShape": layout.filled,
    "Trilu": layout.triangle,
    "GatherElements": layout.gather_elements,
    "TopK": layout.largest,
    "ArgMax": layout.place_of_largest,
}


def untaken(nodes: Iterable[onnx.NodeProto]) -> str | None:
    """Return the first operator that the table does not have."""
    for node in nodes:
        if node.domain not in STANDARD_DOMAINS or node.op_type not in OPERATORS:
            return str(node.op_type)
    return None


def run(nodes: Iterable[onnx.NodeProto], known: Mapping[str, Tensor], wanted: str) -> Tensor:
    """Run nodes in their order and return one of their tensors.

    Attributes that the table does not know raise `NotTaken` with the operator's name.

    Raises:
        NotTaken: an operator, or a setting of one, is not in the table.
    """
    values = dict(known)
    for node in nodes:
        if node.domain not in STANDARD_DOMAINS or node.op_type not in OPERATORS:
            raise NotTaken(node.op_type)
        try:
            made = OPERATORS[node.op_type](node, [values[name] if name else None for name in node.input])
        except (NotTaken, RuntimeError, TypeError, IndexError, ValueError) as error:
            raise NotTaken(node.op_type) from error
        values.update((name, tensor) for name, tensor in zip(node.output, made, strict=False) if name)
    return values[wanted]
