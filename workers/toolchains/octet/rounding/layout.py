"""ONNX operators in torch: moving, cutting and joining elements, and shapes as data."""

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from workers.toolchains.octet.rounding.pointwise import Inputs, NotTaken, given, integers, needed, whole
from workers.toolchains.octet.rounding.wiring import attribute

_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


def numbers(tensor: Tensor) -> list[int]:
    """Return a tensor's elements as Python integers."""
    return [int(each) for each in tensor.reshape(-1).tolist()]


def axes_of(node: onnx.NodeProto, inputs: Inputs, place: int) -> list[int] | None:
    """Return axes given as an input or, in old opsets, as an attribute."""
    found = given(inputs, place)
    if found is not None:
        return numbers(found)
    return integers(node, "axes", []) or None


def reshape(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, wanted = needed(inputs, 0), numbers(needed(inputs, 1))
    if not whole(node, "allowzero", 0):
        wanted = [x.shape[at] if size == 0 else size for at, size in enumerate(wanted)]
    return (x.reshape(wanted),)


def flatten(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axis = needed(inputs, 0), whole(node, "axis", 1)
    axis = axis % x.ndim if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return (x.reshape(rows, -1),)


def transpose(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x = needed(inputs, 0)
    return (x.permute(integers(node, "perm", list(range(x.ndim))[::-1])),)


def squeeze(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axes = needed(inputs, 0), axes_of(node, inputs, 1)
    return (x.squeeze() if axes is None else x.squeeze(tuple(axes)),)


def unsqueeze(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axes = needed(inputs, 0), axes_of(node, inputs, 1) or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return (x,)


def gather(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, where = needed(inputs, 0), needed(inputs, 1)
    axis = whole(node, "axis", 0) % x.ndim
    flat = where.reshape(-1).long()
    taken = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return (taken.reshape(*x.shape[:axis], *where.shape, *x.shape[axis + 1 :]),)


def concat(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return (torch.cat([each for each in inputs if each is not None], whole(node, "axis", 0)),)


def split(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, sizes = needed(inputs, 0), given(inputs, 1)
    axis = whole(node, "axis", 0)
    if sizes is not None:
        return torch.split(x, numbers(sizes), axis)
    return torch.split(x, -(-x.shape[axis] // len(node.output)), axis)


def cut(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, starts, ends = needed(inputs, 0), numbers(needed(inputs, 1)), numbers(needed(inputs, 2))
    axes = given(inputs, 3)
    steps = given(inputs, 4)
    over = list(range(len(starts))) if axes is None else numbers(axes)
    strides = [1] * len(starts) if steps is None else numbers(steps)
    for axis, start, end, step in zip(over, starts, ends, strides, strict=True):
        places = range(x.shape[axis])[slice(start, _end(end, step, x.shape[axis]), step)]
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return (x,)


def pad(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, pads, value, axes = needed(inputs, 0), numbers(needed(inputs, 1)), given(inputs, 2), given(inputs, 3)
    if attribute(node, "mode", "constant") != "constant":
        raise NotTaken
    over = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in numbers(axes)]
    around = [(0, 0)] * x.ndim
    for axis, begin, end in zip(over, pads[: len(over)], pads[len(over) :], strict=True):
        around[axis] = (begin, end)
    flat = [each for pair in reversed(around) for each in pair]
    return (functional.pad(x, flat, value=0.0 if value is None else float(value)),)


def cast(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    wanted = whole(node, "to", 0)
    if wanted not in _TYPES:
        raise NotTaken
    return (needed(inputs, 0).to(_TYPES[wanted]),)


def shape(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x = needed(inputs, 0)
    sizes = list(x.shape)[whole(node, "start", 0) : whole(node, "end", x.ndim)]
    return (torch.tensor(sizes, dtype=torch.int64),)


def expand(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, wanted = needed(inputs, 0), numbers(needed(inputs, 1))
    ones = torch.ones(1, dtype=x.dtype).expand(wanted)
    return (torch.broadcast_tensors(x, ones)[0],)  # type: ignore[no-untyped-call]


def where(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return (torch.where(needed(inputs, 0), needed(inputs, 1), needed(inputs, 2)),)


def _end(end: int, step: int, size: int) -> int | None:
    """Say ONNX's end in Python's words: far below zero means past the first element."""
    return None if step < 0 and end < -size else end
