"""The stored integer weights of a QDQ graph, and the float weights that training begins with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from workers.toolchains.octet.rounding.layers import layers_of, source_of
from workers.toolchains.octet.rounding.wiring import Wiring, attribute
from workers.training.quantizers import Grid

Floats = NDArray[np.float32]

_BOUNDS = {onnx.TensorProto.INT8: (-128, 127), onnx.TensorProto.UINT8: (0, 255)}
# The float weight is brought this close to its integer, in steps: at the edge rounding could fall to either side.
_WITHIN = 0.49


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A stored integer weight and its DequantizeLinear.

    Attributes:
        scale, zero_point: names of initializers; no zero point means 0.
        bounds: of the type it is stored in.
    """

    scale: str
    zero_point: str | None
    axis: int | None
    bounds: tuple[int, int]

    def grid(self, wiring: Wiring, qmin: int, qmax: int) -> Grid:
        """Return the grid with these bounds."""
        scale, zero_point = self._numbers(wiring)
        return Grid(
            scale=torch.from_numpy(scale.copy()),
            zero_point=torch.from_numpy(zero_point.copy()),
            qmin=qmin,
            qmax=qmax,
            axis=self.axis,
        )

    def value(self, wiring: Wiring, integers: NDArray[np.int32]) -> Floats:
        """Return what integers stand for."""
        scale, zero_point = (self.along(each, integers.ndim) for each in self._numbers(wiring))
        value: Floats = ((integers - zero_point) * scale).astype(np.float32)
        return value

    def near(self, wiring: Wiring, integers: NDArray[np.int32], weight: Floats) -> Floats:
        """Return the float weight, moved to where it is rounded to these integers."""
        scale = np.abs(self.along(self._numbers(wiring)[0], integers.ndim))
        value = self.value(wiring, integers)
        near: Floats = (value + np.clip(weight - value, -_WITHIN * scale, _WITHIN * scale)).astype(np.float32)
        return near

    def along(self, parameter: NDArray[Any], axes: int) -> NDArray[Any]:
        """Return a scale or zero point in a form that numpy stretches to the weight's shape."""
        if self.axis is None:
            return parameter.reshape(())
        return parameter.reshape([-1 if at == self.axis else 1 for at in range(axes)])

    def _numbers(self, wiring: Wiring) -> tuple[Floats, NDArray[np.int32]]:
        scale: Floats = numpy_helper.to_array(wiring.initializers[self.scale]).astype(np.float32)
        zero_point = np.zeros(scale.shape, np.int32)
        if self.zero_point is not None:
            zero_point = numpy_helper.to_array(wiring.initializers[self.zero_point]).astype(np.int32)
        return scale, zero_point


def stored_weights(wiring: Wiring) -> dict[str, Stored]:
    """Return the integer weights that are dequantized in whole tensors or per channel, by name.

    A scale below or at 0, one that several weights share, and integers that stand for several weights cannot be
    trained: such weights stay as they are.
    """
    views: dict[str, set[Stored | None]] = {}
    for node in wiring.nodes:
        if node.op_type == "DequantizeLinear":
            views.setdefault(str(node.input[0]), set()).add(_stored(node, wiring))
    found = {name: each for name, (each, *others) in views.items() if each is not None and not others}
    shared = [each.scale for each in found.values()]
    return {name: each for name, each in found.items() if shared.count(each.scale) == 1}


def latents_of(
    model: onnx.ModelProto, float32: onnx.ModelProto, *, narrow: tuple[int, int], wide_layers: tuple[str, ...]
) -> tuple[dict[str, Floats], dict[str, tuple[int, int]]]:
    """Return, by the names of stored weights, the float weights to begin with, and the bounds of their grids.

    Args:
        float32: the graph before quantization, prepared as it was then.
        narrow: bounds of a grid of fewer than 8 bits; layers whose integers go beyond keep those of their type.
        wide_layers: layers that keep 8 bits whatever their integers are.
    """
    wiring, known = Wiring(model.graph), Wiring(float32.graph)
    stored, latents, bounds = stored_weights(wiring), dict[str, Floats](), dict[str, tuple[int, int]]()
    layers = {layer.integers: layer for layer in layers_of(wiring)[0]}
    for name, each in stored.items():
        integers = numpy_helper.to_array(wiring.initializers[name]).astype(np.int32)
        layer = layers.get(name)
        if (layer is None or layer.name not in wide_layers) and narrow[0] <= integers.min() <= integers.max() <= narrow[
            1
        ]:
            bounds[name] = narrow
        source = source_of(layer, wiring, original=float32, known=known) if layer is not None else None
        if layer is not None and source is not None:
            weight = source.weight(layer, original=float32, known=known)
            latents[name] = each.near(wiring, integers, weight.transpose(np.argsort(layer.moved)))
    return latents, bounds


def _stored(node: onnx.NodeProto, wiring: Wiring) -> Stored | None:
    name, scale, *rest = [str(each) for each in node.input]
    tensor, scales = wiring.initializers.get(name), wiring.initializers.get(scale)
    zero_point = rest[0] if rest and rest[0] else None
    if tensor is None or scales is None or tensor.data_type not in _BOUNDS or attribute(node, "block_size", 0):
        return None
    if not _trainable(scales) or (zero_point is not None and zero_point not in wiring.initializers):
        return None
    size = int(np.prod(scales.dims, dtype=np.int64))
    axis = int(str(attribute(node, "axis", 1))) % max(1, len(tensor.dims)) if size > 1 else None
    if axis is not None and (not tensor.dims or tensor.dims[axis] != size):
        return None
    return Stored(scale=scale, zero_point=zero_point, axis=axis, bounds=_BOUNDS[tensor.data_type])


def _trainable(scales: onnx.TensorProto) -> bool:
    return scales.data_type == onnx.TensorProto.FLOAT and bool((numpy_helper.to_array(scales) > 0).all())
