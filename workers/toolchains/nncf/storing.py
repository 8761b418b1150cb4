"""Weights written as integers that DequantizeLinear turns back: what NNCF leaves out of its weight compression."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from workers.toolchains.nncf.weights import Weight

BYTES_OF_FLOAT = 4
_BYTES_OF_NODE = 160
_SIGNED: dict[int, Any] = {8: np.int8, 4: ml_dtypes.int4}
_UNSIGNED: dict[int, Any] = {8: np.uint8, 4: ml_dtypes.uint4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How weights are stored.

    Attributes:
        bits: 8 or 4.
        symmetric: INT8/INT4 without zero point; UINT8/UINT4 with one otherwise.
        group_size: how many weights along the input axis of a matrix product share a scale; None for all.
    """

    bits: int
    symmetric: bool
    group_size: int | None = None

    def pays(self, weight: Weight) -> bool:
        """Whether the tensor gets smaller: a scale and a node may outweigh a short row."""
        elements = int(np.prod(weight.shape))
        scales = elements // self._per_scale(weight) * (BYTES_OF_FLOAT + (0 if self.symmetric else 1))
        return elements * self.bits // 8 + scales + _BYTES_OF_NODE < elements * BYTES_OF_FLOAT

    def groups(self, weight: Weight) -> bool:
        """Whether this weight's rows are divided into groups."""
        return self.group_size is not None and weight.input_axis is not None

    def _per_scale(self, weight: Weight) -> int:
        if self.group_size is not None and self.groups(weight):
            return self.group_size
        return int(np.prod(weight.shape)) // weight.shape[weight.output_axis]


def store(weight: Weight, storage: Storage) -> None:
    """Replace a weight by integers and a DequantizeLinear of the same output, rounded to the nearest.

    Symmetric: scale = max|w| / (2^(bits-1) - 1). Asymmetric: scale = (max - min) / (2^bits - 1), the range widened to
    hold zero, zero_point = round(-min / scale). Either way no weight moves by more than scale / 2 (Jacob et al. 2018,
    arXiv:1712.05877, equations 1 and 12).
    """
    values: NDArray[np.float32] = numpy_helper.to_array(weight.tensor)
    blocks, axes = _blocked(values, weight, storage)
    integers, scale, zero_point = (_symmetric if storage.symmetric else _asymmetric)(blocks, axes, storage.bits)
    squeezed = weight.input_axis + 1 if weight.input_axis is not None and storage.groups(weight) else None
    _replace(
        weight,
        integers.reshape(values.shape),
        [part.reshape(-1) if squeezed is None else part.squeeze(squeezed) for part in (scale, zero_point)],
        storage,
    )


def rounded(values: NDArray[np.float32], weight: Weight, storage: Storage) -> NDArray[np.float32]:
    """Return what a weight with these values would be after it was stored."""
    blocks, axes = _blocked(values, weight, storage)
    integers, scale, zero_point = (_symmetric if storage.symmetric else _asymmetric)(blocks, axes, storage.bits)
    found: NDArray[np.float32] = (integers.astype(np.float32) - zero_point.astype(np.float32)) * scale
    return found.reshape(values.shape)


def _blocked(
    values: NDArray[np.float32], weight: Weight, storage: Storage
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Return the weights with groups as an axis of their own, and the axes that share a scale."""
    if weight.input_axis is None or storage.group_size is None:
        return values, tuple(axis for axis in range(values.ndim) if axis != weight.output_axis)
    axis = weight.input_axis
    shape = (*values.shape[:axis], -1, storage.group_size, *values.shape[axis + 1 :])
    return values.reshape(shape), (axis + 1,)


Parts = tuple[NDArray[Any], NDArray[np.float32], NDArray[Any]]


def _symmetric(values: NDArray[np.float32], axes: tuple[int, ...], bits: int) -> Parts:
    most = 2 ** (bits - 1) - 1
    scale = _positive(np.abs(values).max(axis=axes, keepdims=True) / most)
    integers = np.clip(np.rint(values / scale), -most, most)
    return integers.astype(np.int8).astype(_SIGNED[bits]), scale, np.zeros(scale.shape, _SIGNED[bits])


def _asymmetric(values: NDArray[np.float32], axes: tuple[int, ...], bits: int) -> Parts:
    most = 2**bits - 1
    low = np.minimum(values.min(axis=axes, keepdims=True), 0)
    high = np.maximum(values.max(axis=axes, keepdims=True), 0)
    scale = _positive((high - low) / most)
    zero_point = np.clip(np.rint(-low / scale), 0, most)
    integers = np.clip(np.rint(values / scale) + zero_point, 0, most)
    return (
        integers.astype(np.uint8).astype(_UNSIGNED[bits]),
        scale,
        zero_point.astype(np.uint8).astype(_UNSIGNED[bits]),
    )


def _positive(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scales with 1 for those too small to divide by: their weights are zero to float32."""
    return np.where(scale < np.finfo(np.float32).tiny, 1, scale).astype(np.float32)


def _replace(weight: Weight, integers: NDArray[Any], parts: list[NDArray[Any]], storage: Storage) -> None:
    name = weight.tensor.name
    stored = [
        numpy_helper.from_array(integers, f"{name}_quantized"),
        numpy_helper.from_array(parts[0], f"{name}_scale"),
    ]
    if not storage.symmetric:
        stored.append(numpy_helper.from_array(parts[1], f"{name}_zero_point"))
    grouped = storage.groups(weight)
    node = helper.make_node(
        "DequantizeLinear",
        [tensor.name for tensor in stored],
        [name],
        name=f"{name}_DequantizeLinear",
        axis=weight.input_axis if grouped else weight.output_axis,
        **({"block_size": storage.group_size} if grouped else {}),
    )
    _drop(weight.graph, name)
    weight.graph.initializer.extend(stored)
    weight.graph.node.insert(0, node)


def _drop(graph: onnx.GraphProto, name: str) -> None:
    """Take a float weight out. Not by making the list anew: the message would keep the memory of every copy."""
    index = next(index for index, tensor in enumerate(graph.initializer) if tensor.name == name)
    del graph.initializer[index]
