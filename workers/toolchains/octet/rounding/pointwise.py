"""ONNX operators in torch: arithmetic on elements, matrix products, reductions, normalizations and quantizers."""

from collections.abc import Callable, Sequence
from typing import cast

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from workers.toolchains.octet.rounding.wiring import attribute

Inputs = Sequence[Tensor | None]
Operator = Callable[[onnx.NodeProto, Inputs], tuple[Tensor, ...]]

_QUANTIZED_RANGES = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
}


class NotTaken(Exception):
    """An operator, or a setting of one, that the table does not know."""


def given(inputs: Inputs, place: int) -> Tensor | None:
    """Return an input that may be left out."""
    return inputs[place] if place < len(inputs) else None


def needed(inputs: Inputs, place: int) -> Tensor:
    """Return an input that must be there."""
    found = given(inputs, place)
    if found is None:
        raise NotTaken
    return found


def integers(node: onnx.NodeProto, name: str, default: Sequence[int] | None = None) -> list[int]:
    """Return an attribute of integers."""
    found = attribute(node, name, None)
    if isinstance(found, list):
        return [int(each) for each in found]
    if default is None:
        raise NotTaken
    return list(default)


def number(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return an attribute of one number."""
    return float(cast(float, attribute(node, name, default)))


def whole(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an attribute of one integer."""
    return int(cast(int, attribute(node, name, default)))


def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    """Make an operator of a function of one tensor."""
    return lambda _node, inputs: (function(needed(inputs, 0)),)


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Make an operator of a function of two tensors."""

    def operator(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
        if len(inputs) != 2:  # noqa: PLR2004 - Max and Min take any number
            raise NotTaken
        return (function(needed(inputs, 0), needed(inputs, 1)),)

    return operator


def divide(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    a, b = needed(inputs, 0), needed(inputs, 1)
    return (a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc"),)


def clip(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    low, high = given(inputs, 1), given(inputs, 2)
    x = needed(inputs, 0)
    x = x if low is None else torch.maximum(x, low)
    return (x if high is None else torch.minimum(x, high),)


def leaky_relu(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return (functional.leaky_relu(needed(inputs, 0), number(node, "alpha", 0.01)),)


def p_relu(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, slope = needed(inputs, 0), needed(inputs, 1)
    return (torch.where(x < 0, x * slope, x),)


def elu(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return (functional.elu(needed(inputs, 0), number(node, "alpha", 1.0)),)


def hard_sigmoid(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return ((needed(inputs, 0) * number(node, "alpha", 0.2) + number(node, "beta", 0.5)).clamp(0, 1),)


def hard_swish(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x = needed(inputs, 0)
    return (x * (x / 6 + 0.5).clamp(0, 1),)


def gelu(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return (functional.gelu(needed(inputs, 0), approximate=str(attribute(node, "approximate", "none"))),)


def softmax(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return (torch.softmax(needed(inputs, 0), whole(node, "axis", -1)),)


def log_softmax(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return (torch.log_softmax(needed(inputs, 0), whole(node, "axis", -1)),)


def celu(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return (functional.celu(needed(inputs, 0), number(node, "alpha", 1.0)),)


def selu(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, alpha = needed(inputs, 0), number(node, "alpha", 1.6732632423543772)
    below = alpha * torch.expm1(x.clamp(max=0))
    return (number(node, "gamma", 1.0507009873554805) * torch.where(x > 0, x, below),)


def modulo(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    function = torch.fmod if whole(node, "fmod", 0) else torch.remainder
    return (function(needed(inputs, 0), needed(inputs, 1)),)


def total(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    made = needed(inputs, 0)
    for place in range(1, len(inputs)):
        made = made + needed(inputs, place)
    return (made,)


def einsum(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return (torch.einsum(str(attribute(node, "equation", "")), *(needed(inputs, at) for at in range(len(inputs)))),)


def running_sum(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axis = needed(inputs, 0), int(needed(inputs, 1))
    x = x.flip(axis) if whole(node, "reverse", 0) else x
    made = x.cumsum(axis) - x if whole(node, "exclusive", 0) else x.cumsum(axis)
    return (made.flip(axis) if whole(node, "reverse", 0) else made,)


def gemm(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    a = needed(inputs, 0).T if whole(node, "transA", 0) else needed(inputs, 0)
    b = needed(inputs, 1).T if whole(node, "transB", 0) else needed(inputs, 1)
    bias = given(inputs, 2)
    product = number(node, "alpha", 1.0) * (a @ b)
    return (product if bias is None else product + number(node, "beta", 1.0) * bias,)


def layer_normalization(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x = needed(inputs, 0)
    axis = whole(node, "axis", -1) % x.ndim
    if len([name for name in node.output if name]) > 1:
        raise NotTaken
    bias = given(inputs, 2)
    sizes = list(x.shape[axis:])
    weight = needed(inputs, 1).expand(sizes)
    epsilon = number(node, "epsilon", 1e-5)
    return (functional.layer_norm(x, sizes, weight, None if bias is None else bias.expand(sizes), epsilon),)


def batch_normalization(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    if whole(node, "training_mode", 0):
        raise NotTaken
    x, scale, bias, mean, variance = (needed(inputs, place) for place in range(5))
    return (functional.batch_norm(x, mean, variance, scale, bias, eps=number(node, "epsilon", 1e-5)),)


def instance_normalization(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, scale, bias = (needed(inputs, place) for place in range(3))
    return (functional.instance_norm(x, weight=scale, bias=bias, eps=number(node, "epsilon", 1e-5)),)


def reducer(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    """Make an operator that reduces over axes, which are an input or, before opset 18, an attribute."""

    def reduce(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
        x, axes = needed(inputs, 0), given(inputs, 1)
        over = integers(node, "axes", []) if axes is None else [int(each) for each in axes.tolist()]
        if not over and whole(node, "noop_with_empty_axes", 0):
            return (x,)
        return (function(x, over or list(range(x.ndim)), bool(whole(node, "keepdims", 1))),)

    return reduce


def quantize(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    """Round to integers, kept as floats; gradients pass the rounding as if it were not there (Bengio et al. 2013)."""
    x, scale, zero_point = needed(inputs, 0), needed(inputs, 1), given(inputs, 2)
    low, high = _QUANTIZED_RANGES.get(torch.uint8 if zero_point is None else zero_point.dtype, (0, 0))
    if low == high or whole(node, "block_size", 0) or (zero_point is None and whole(node, "output_dtype", 0)):
        raise NotTaken
    exact = x / _along(scale, node, x)
    rounded = exact + (torch.round(exact) - exact).detach()
    if zero_point is not None:
        rounded = rounded + _along(zero_point, node, x).float()
    return (rounded.clamp(low, high),)


def dequantize(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, scale, zero_point = needed(inputs, 0), needed(inputs, 1), given(inputs, 2)
    if whole(node, "block_size", 0):
        raise NotTaken
    shifted = x.float() if zero_point is None else x.float() - _along(zero_point, node, x).float()
    return (shifted * _along(scale, node, x),)


def _along(parameter: Tensor, node: onnx.NodeProto, x: Tensor) -> Tensor:
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis = whole(node, "axis", 1) % x.ndim
    return parameter.reshape([-1 if at == axis else 1 for at in range(x.ndim)])
