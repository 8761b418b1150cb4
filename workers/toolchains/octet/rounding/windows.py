"""ONNX operators in torch: convolutions, pooling, resizing."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from workers.toolchains.octet.rounding.pointwise import Inputs, NotTaken, given, integers, needed, whole
from workers.toolchains.octet.rounding.wiring import attribute

T = TypeVar("T")

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def convolve(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, weight, bias = needed(inputs, 0), needed(inputs, 1), given(inputs, 2)
    axes = x.ndim - 2
    strides, dilations = integers(node, "strides", [1] * axes), integers(node, "dilations", [1] * axes)
    padded = pad_edges(x, edges(node, x, weight.shape[2:], strides, dilations), 0.0)
    function = cast(Callable[..., Tensor], _pick(_CONVOLUTIONS, axes))
    return (function(padded, weight, bias, strides, 0, dilations, whole(node, "group", 1)),)


def convolve_transposed(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, weight, bias = needed(inputs, 0), needed(inputs, 1), given(inputs, 2)
    axes = x.ndim - 2
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or attribute(node, "output_shape", None):
        raise NotTaken
    pads = integers(node, "pads", [0] * 2 * axes)
    extra = integers(node, "output_padding", [0] * axes)
    behind = [more - less for more, less in zip(extra, pads[axes:], strict=True)]
    strides, dilations = integers(node, "strides", [1] * axes), integers(node, "dilations", [1] * axes)
    function = cast(Callable[..., Tensor], _pick(_TRANSPOSED, axes))
    # the whole output without its bias: it is cut or lengthened first, for the two ends may differ
    y = function(x, weight, None, strides, 0, 0, whole(node, "group", 1), dilations)
    y = pad_edges(y, [(-begin, end) for begin, end in zip(pads[:axes], behind, strict=True)], 0.0)
    return (y if bias is None else y + bias.reshape(1, -1, *[1] * axes),)


def max_pool(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x = needed(inputs, 0)
    axes = x.ndim - 2
    # where both ends are padded, the libraries differ in what a last window may lack
    ceil = bool(whole(node, "ceil_mode", 0))
    if len([name for name in node.output if name]) > 1 or (ceil and any(integers(node, "pads", [0]))):
        raise NotTaken
    kernel = integers(node, "kernel_shape")
    strides, dilations = integers(node, "strides", [1] * axes), integers(node, "dilations", [1] * axes)
    padded = pad_edges(x, edges(node, x, kernel, strides, dilations), float("-inf"))
    return (cast(Callable[..., Tensor], _pick(_MAX_POOLS, axes))(padded, kernel, strides, 0, dilations, ceil),)


def average_pool(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x = needed(inputs, 0)
    axes = x.ndim - 2
    dilations = integers(node, "dilations", [1] * axes)
    if whole(node, "ceil_mode", 0) or set(dilations) != {1}:
        raise NotTaken
    kernel, strides = integers(node, "kernel_shape"), integers(node, "strides", [1] * axes)
    around = edges(node, x, kernel, strides, dilations)
    pool = cast(Callable[..., Tensor], _pick(_AVERAGE_POOLS, axes))
    total = pool(pad_edges(x, around, 0.0), kernel, strides)
    if whole(node, "count_include_pad", 0) or not any(map(any, around)):
        return (total,)
    return (total / pool(pad_edges(torch.ones_like(x[:1, :1]), around, 0.0), kernel, strides),)


def global_average_pool(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x = needed(inputs, 0)
    return (x.mean(list(range(2, x.ndim)), keepdim=True),)


def global_max_pool(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x = needed(inputs, 0)
    return (x.amax(list(range(2, x.ndim)), keepdim=True),)


def resize(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, scales, sizes = needed(inputs, 0), given(inputs, 2), given(inputs, 3)
    mode = str(attribute(node, "mode", "nearest"))
    how = str(attribute(node, "coordinate_transformation_mode", "half_pixel"))
    if attribute(node, "axes", None) or whole(node, "antialias", 0):
        raise NotTaken
    target = _target(x, scales, sizes)
    if mode == "nearest":
        return (_repeated(x, target, how, str(attribute(node, "nearest_mode", "round_prefer_floor"))),)
    if mode != "linear" or how not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise NotTaken
    if how == "pytorch_half_pixel" and 1 in target:
        raise NotTaken
    names = {3: "linear", 4: "bilinear", 5: "trilinear"}
    return (functional.interpolate(x, target, mode=_pick(names, x.ndim), align_corners=how == "align_corners"),)


def depth_to_space(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, size = needed(inputs, 0), whole(node, "blocksize", 1)
    if attribute(node, "mode", "DCR") == "CRD":
        return (functional.pixel_shuffle(x, size),)
    rows, channels, height, width = x.shape
    split = x.reshape(rows, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return (split.reshape(rows, -1, height * size, width * size),)


def space_to_depth(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, size = needed(inputs, 0), whole(node, "blocksize", 1)
    rows, channels, height, width = x.shape
    split = x.reshape(rows, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return (split.reshape(rows, -1, height // size, width // size),)


def edges(
    node: onnx.NodeProto, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the padding in front of and behind each spatial axis."""
    axes = x.ndim - 2
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = integers(node, "pads", [0] * 2 * axes)
        return list(zip(pads[:axes], pads[axes:], strict=True))
    if auto == "VALID":
        return [(0, 0)] * axes
    around = []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        missing = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        small, large = missing // 2, missing - missing // 2
        around.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return around


def pad_edges(x: Tensor, around: Sequence[tuple[int, int]], value: float) -> Tensor:
    """Pad, or cut where negative, the last axes."""
    if not any(map(any, around)):
        return x
    return functional.pad(x, [each for pair in reversed(around) for each in pair], value=value)


def _target(x: Tensor, scales: Tensor | None, sizes: Tensor | None) -> list[int]:
    """Return the spatial sizes after resizing; rows and channels must stay."""
    if sizes is not None and sizes.numel():
        wanted = [int(each) for each in sizes.tolist()]
    elif scales is not None and scales.numel():
        exact = [size * scale for size, scale in zip(x.shape, scales.tolist(), strict=True)]
        wanted = [int(each) for each in exact]
        if wanted != exact:
            raise NotTaken
    else:
        raise NotTaken
    if wanted[:2] != list(x.shape[:2]):
        raise NotTaken
    return wanted[2:]


def _repeated(x: Tensor, target: Sequence[int], how: str, rounding: str) -> Tensor:
    """Resize to the nearest value, along one axis after the other."""
    for axis, (size, wanted) in enumerate(zip(x.shape[2:], target, strict=True), start=2):
        place = torch.arange(wanted, dtype=torch.float64)
        if how in ("half_pixel", "pytorch_half_pixel"):
            source = (place + 0.5) * size / wanted - 0.5
        elif how == "asymmetric":
            source = place * size / wanted
        else:
            raise NotTaken
        x = x.index_select(axis, _rounded(source, rounding).long().clamp(0, size - 1))
    return x


def _rounded(source: Tensor, rounding: str) -> Tensor:
    if rounding == "floor":
        return source.floor()
    if rounding == "ceil":
        return source.ceil()
    return (source + 0.5).floor() if rounding == "round_prefer_ceil" else (source - 0.5).ceil()


def _pick(table: Mapping[int, T], axes: int) -> T:
    if axes not in table:
        raise NotTaken
    return table[axes]
