"""Batch normalizations that were folded into the convolutions before them: their statistics, still moving."""

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from workers.toolchains.octet.rounding.wiring import Wiring

MOMENTUM = 0.1
_SMALLEST = 1e-6

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A batch normalization's scale and shift: standard deviation and mean of what it gives, per channel."""

    scale: Floats
    shift: Floats


def norms_of(float32: onnx.ModelProto) -> dict[str, Norm]:
    """Return the batch normalizations that alone read a convolution, by the convolution's name."""
    wiring, found = Wiring(float32.graph), dict[str, Norm]()
    for node in wiring.nodes:
        layer = wiring.maker(node.input[0]) if node.op_type == "BatchNormalization" else None
        if layer is None or layer.op_type != "Conv" or wiring.only_taker(layer.output[0]) is None:
            continue
        if all(name in wiring.initializers for name in node.input[1:3]):
            scale, shift = (numpy_helper.to_array(wiring.initializers[name]) for name in node.input[1:3])
            found[str(layer.name)] = Norm(scale=np.abs(scale.astype(np.float32)), shift=shift.astype(np.float32))
    return found


class Statistics(nn.Module):
    """Brings a folded convolution's output back to the mean and deviation that its batch normalization gives.

    At first it changes nothing; while it is not `frozen`, the mean and deviation that it expects follow the batches
    (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.1). No gradient passes through them. What it does is a factor
    and a summand per channel, which can be folded into the layer for good.
    """

    mean: Tensor
    deviation: Tensor
    wanted_mean: Tensor
    wanted_deviation: Tensor

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.frozen = False
        deviation = torch.from_numpy(norm.scale.copy()).clamp(min=_SMALLEST)
        for name, value in (("mean", torch.from_numpy(norm.shift.copy())), ("deviation", deviation)):
            self.register_buffer(name, value)
            self.register_buffer(f"wanted_{name}", value.clone())

    @property
    def factor(self) -> Tensor:
        """Return what every channel is multiplied with; float32[channels]."""
        return self.wanted_deviation / self.deviation

    @property
    def summand(self) -> Tensor:
        """Return what is added to every channel afterwards; float32[channels]."""
        return self.wanted_mean - self.mean * self.factor

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[rows, channels, ...] with its channels' statistics put right."""
        if self.training and not self.frozen:
            self._follow(x.detach())
        shape = [1, -1, *[1] * (x.ndim - 2)]
        return x * self.factor.reshape(shape) + self.summand.reshape(shape)

    def _follow(self, x: Tensor) -> None:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x, axes, correction=0)
        self.mean.lerp_(mean, MOMENTUM)
        self.deviation.copy_((self.deviation.square().lerp(variance, MOMENTUM)).sqrt().clamp(min=_SMALLEST))
