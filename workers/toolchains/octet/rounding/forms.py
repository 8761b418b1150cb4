"""Layers as matrix products: a weight as [groups, outputs, k], and the inputs that meet it at one output position.

Convolutions of any rank, transposed ones too, and matrix products then round by the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from workers.toolchains.octet.rounding.wiring import attribute

Floats = NDArray[np.float32]
_MATRIX_AXES = 2


class Form(Protocol):
    """What a kind of layer says of itself."""

    def matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return the weight as [groups, outputs, k]."""

    def weight(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Undo `matrix`."""

    def positions(self, y: Floats) -> int:
        """Return how many output positions `y`, the layer's output, has."""

    def outputs(self, y: Floats, picked: NDArray[np.int64]) -> Floats:
        """Return [picked, groups * outputs]: the layer's output at some positions."""

    def patches(self, x: Floats, y_shape: Sequence[int], picked: NDArray[np.int64]) -> Floats:
        """Return [picked, groups, k]: what of the layer's input meets the weight at some output positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """MatMul and Gemm with a weight of two axes.

    Attributes:
        transposed: whether the weight is stored as [outputs, k].
        alpha: a factor on the product.
    """

    transposed: bool
    alpha: float = 1.0

    def matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        matrix: NDArray[Any] = (weight if self.transposed else weight.T)[np.newaxis]
        return matrix

    def weight(self, matrix: NDArray[Any]) -> NDArray[Any]:
        weight: NDArray[Any] = matrix[0] if self.transposed else matrix[0].T
        return weight

    def positions(self, y: Floats) -> int:
        return int(y.size // y.shape[-1])

    def outputs(self, y: Floats, picked: NDArray[np.int64]) -> Floats:
        return y.reshape(-1, y.shape[-1])[picked]

    def patches(self, x: Floats, y_shape: Sequence[int], picked: NDArray[np.int64]) -> Floats:  # noqa: ARG002
        return x.reshape(-1, x.shape[-1])[picked][:, np.newaxis] * np.float32(self.alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Convolutions: output position p reads x[p * strides - before + tap * dilations] for every tap of the kernel.

    Attributes:
        before: padding in front of each spatial axis; None where `auto_pad` derives it from the sizes.
        upper: whether `auto_pad` puts an odd padding behind.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...] | None
    upper: bool
    groups: int

    def matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight(self, matrix: NDArray[Any]) -> NDArray[Any]:
        return matrix.reshape(matrix.shape[0] * matrix.shape[1], -1, *self.kernel)

    def positions(self, y: Floats) -> int:
        return int(y.size // y.shape[1])

    def outputs(self, y: Floats, picked: NDArray[np.int64]) -> Floats:
        return np.moveaxis(y, 1, -1)[_places(y.shape, picked)]

    def patches(self, x: Floats, y_shape: Sequence[int], picked: NDArray[np.int64]) -> Floats:
        before = self._before(x.shape[2:], y_shape[2:])
        padded = _padded(x, before, self._spans(y_shape[2:]))
        row, *spatial = _places(y_shape, picked)
        starts = [place * stride for place, stride in zip(spatial, self.strides, strict=True)]
        return self._taken(padded, row, starts)

    def _taken(self, padded: Floats, row: NDArray[np.int64], starts: Sequence[NDArray[np.int64]]) -> Floats:
        windows = sliding_window_view(padded, self._reach(), axis=tuple(range(2, padded.ndim)))
        taps = tuple(slice(None, None, dilation) for dilation in self.dilations)
        at: tuple[Any, ...] = (row, slice(None), *starts)
        picked = windows[at][(slice(None), slice(None), *taps)]
        return np.ascontiguousarray(picked).reshape(len(row), self.groups, -1)

    def _reach(self) -> tuple[int, ...]:
        return tuple((size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True))

    def _spans(self, sizes: Sequence[int]) -> list[int]:
        """Return how far along each axis the last output position reads."""
        return [
            (size - 1) * stride + reach for size, stride, reach in zip(sizes, self.strides, self._reach(), strict=True)
        ]

    def _before(self, x_sizes: Sequence[int], y_sizes: Sequence[int]) -> tuple[int, ...]:
        if self.before is not None:
            return self.before
        missing = [max(span - size, 0) for span, size in zip(self._spans(y_sizes), x_sizes, strict=True)]
        return tuple(each // 2 if self.upper else (each + 1) // 2 for each in missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transposed:
    """Transposed convolutions: a convolution of the input with zeros between its values, the kernel turned round."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    groups: int

    def matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        grouped = weight.reshape(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])
        turned = np.flip(grouped.swapaxes(1, 2), axis=tuple(range(3, grouped.ndim)))
        return turned.reshape(*turned.shape[:2], -1)

    def weight(self, matrix: NDArray[Any]) -> NDArray[Any]:
        turned = matrix.reshape(*matrix.shape[:2], -1, *self.kernel)
        grouped = np.flip(turned, axis=tuple(range(3, turned.ndim))).swapaxes(1, 2)
        return grouped.reshape(-1, *grouped.shape[2:])

    def positions(self, y: Floats) -> int:
        return self._window().positions(y)

    def outputs(self, y: Floats, picked: NDArray[np.int64]) -> Floats:
        return self._window().outputs(y, picked)

    def patches(self, x: Floats, y_shape: Sequence[int], picked: NDArray[np.int64]) -> Floats:
        sizes = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], self.strides, strict=True)]
        spread = np.zeros((*x.shape[:2], *sizes), np.float32)
        spread[(slice(None), slice(None), *(slice(None, None, stride) for stride in self.strides))] = x
        return self._window().patches(spread, y_shape, picked)

    def _window(self) -> Window:
        ends = zip(self.kernel, self.dilations, self.before, strict=True)
        before = tuple((size - 1) * dilation - begin for size, dilation, begin in ends)
        ones = (1,) * len(self.kernel)
        return Window(
            kernel=self.kernel, strides=ones, dilations=self.dilations, before=before, upper=True, groups=self.groups
        )


def form_of(node: onnx.NodeProto, weight_shape: Sequence[int]) -> Form | None:
    """Return the form of a layer; None for one that has none here."""
    if node.op_type == "MatMul" and len(weight_shape) == _MATRIX_AXES:
        return Product(transposed=False)
    if node.op_type == "Gemm" and not attribute(node, "transA", 0):
        return Product(transposed=bool(attribute(node, "transB", 0)), alpha=_number(node, "alpha"))
    if node.op_type == "Conv":
        return _window(node, weight_shape)
    if node.op_type == "ConvTranspose" and attribute(node, "auto_pad", "NOTSET") == "NOTSET":
        return None if attribute(node, "output_shape", None) else _transposed(node, weight_shape)
    return None


def _window(node: onnx.NodeProto, weight_shape: Sequence[int]) -> Window:
    auto = str(attribute(node, "auto_pad", "NOTSET"))
    axes = len(weight_shape) - 2
    explicit = _each(node, "pads", 2 * axes, 0)[:axes] if auto in ("NOTSET", "VALID") else None
    return Window(
        kernel=tuple(weight_shape[2:]),
        strides=_each(node, "strides", axes, 1),
        dilations=_each(node, "dilations", axes, 1),
        before=(0,) * axes if auto == "VALID" else explicit,
        upper=auto == "SAME_UPPER",
        groups=int(_number(node, "group")),
    )


def _transposed(node: onnx.NodeProto, weight_shape: Sequence[int]) -> Transposed:
    axes = len(weight_shape) - 2
    return Transposed(
        kernel=tuple(weight_shape[2:]),
        strides=_each(node, "strides", axes, 1),
        dilations=_each(node, "dilations", axes, 1),
        before=_each(node, "pads", 2 * axes, 0)[:axes],
        groups=int(_number(node, "group")),
    )


def _each(node: onnx.NodeProto, name: str, count: int, default: int) -> tuple[int, ...]:
    found = attribute(node, name, None)
    return tuple(found) if isinstance(found, list) else (default,) * count


def _number(node: onnx.NodeProto, name: str) -> float:
    found = attribute(node, name, 1)
    return float(found) if isinstance(found, int | float) else 1.0


def _places(y_shape: Sequence[int], picked: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Return the row and the spatial place of output positions that are counted over [rows, *spatial]."""
    return tuple(np.unravel_index(picked, (y_shape[0], *y_shape[2:])))


def _padded(x: Floats, before: Sequence[int], spans: Sequence[int]) -> Floats:
    """Return the input as the kernel reads it: cut or padded with zeros in front, and up to `spans` behind."""
    cut = x[(slice(None), slice(None), *(slice(max(-begin, 0), None) for begin in before))]
    edges = [
        (max(begin, 0), max(span - size - max(begin, 0), 0))
        for begin, span, size in zip(before, spans, cut.shape[2:], strict=True)
    ]
    return np.pad(cut, [(0, 0), (0, 0), *edges])
