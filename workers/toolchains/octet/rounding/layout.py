"""ONNX operators in torch: moving, cutting and joining elements, and shapes as data."""

import onnx
import torch
from onnx import numpy_helper
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
    mode = str(attribute(node, "mode", "constant"))
    over = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in numbers(axes)]
    around = [(0, 0)] * x.ndim
    for axis, begin, end in zip(over, pads[: len(over)], pads[len(over) :], strict=True):
        around[axis] = (begin, end)
    if mode != "constant":
        return (_continued(x, around, mode),)
    flat = [each for pair in reversed(around) for each in pair]
    return (functional.pad(x, flat, value=0.0 if value is None else float(value)),)


def _continued(x: Tensor, around: list[tuple[int, int]], mode: str) -> Tensor:
    """Pad with elements of the tensor itself, along one axis after the other."""
    for axis, (begin, end) in enumerate(around):
        size = x.shape[axis]
        places = torch.arange(-begin, size + end)
        if mode == "edge":
            places = places.clamp(0, size - 1)
        elif mode == "reflect":
            places = (places.abs() - (size - 1)).abs().neg() + (size - 1)
        else:
            raise NotTaken
        x = x.index_select(axis, places) if begin or end else x
    return x


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


def tile(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    return (needed(inputs, 0).repeat(numbers(needed(inputs, 1))),)


def count(_node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    first = needed(inputs, 0)
    start, end, step = (needed(inputs, place).item() for place in range(3))
    return (torch.arange(start, end, step, dtype=first.dtype),)


def filled(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    value = next((each.t for each in node.attribute if each.name == "value"), None)
    one = torch.zeros(1) if value is None else torch.from_numpy(numpy_helper.to_array(value).copy())
    return (one.reshape(()).repeat(numbers(needed(inputs, 0))),)


def triangle(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    offset = given(inputs, 1)
    function = torch.triu if whole(node, "upper", 1) else torch.tril
    return (function(needed(inputs, 0), 0 if offset is None else int(offset)),)


def gather_elements(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, where, axis = needed(inputs, 0), needed(inputs, 1).long(), whole(node, "axis", 0)
    return (x.gather(axis, torch.where(where < 0, where + x.shape[axis], where)),)


def largest(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axis, upwards = needed(inputs, 0), whole(node, "axis", -1), bool(whole(node, "largest", 1))
    found = x.topk(int(needed(inputs, 1)), axis, upwards, bool(whole(node, "sorted", 1)))
    return (found.values, found.indices)


def place_of_largest(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    if whole(node, "select_last_index", 0):
        raise NotTaken
    return (needed(inputs, 0).argmax(whole(node, "axis", 0), bool(whole(node, "keepdims", 1))),)


def _end(end: int, step: int, size: int) -> int | None:
    """Say ONNX's end in Python's words: far below zero means past the first element."""
    return None if step < 0 and end < -size else end
