"""Fake quantizers: they round like the engine, and let gradients pass (Jacob et al. 2018, arXiv:1712.05877)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Scales = Literal["fixed", "observed", "learned"]

MOMENTUM = 0.01
"""How much of a moving extreme the newest batch is."""

_SMALLEST_FACTOR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The values that a quantizer may give: `scale * (integer - zero_point)`, `qmin <= integer <= qmax`.

    Attributes:
        scale: float32, one element, or one per channel.
        zero_point: int32, of the scale's shape.
        axis: of the channels; None where one scale serves all.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None


class Quantizer(nn.Module):
    """What quantizers of weights and of activations share: a grid whose scales may be trained.

    A scale is its first value times a trained factor, so that one rate suits large and small ones; its gradient is that
    of LSQ (Esser et al. 2020, arXiv:1902.08153, equations 2 and 3), with the paper's factor 1 / sqrt(n * qmax).
    """

    zero_point: Tensor
    base: Tensor

    def __init__(self, grid: Grid, *, scales: Scales) -> None:
        super().__init__()
        self.qmin, self.qmax, self.axis = grid.qmin, grid.qmax, grid.axis
        self.register_buffer("base", grid.scale.reshape(-1).clone())
        self.register_buffer("zero_point", grid.zero_point.reshape(-1).to(torch.int32))
        self.factor = nn.Parameter(torch.ones_like(self.base)) if scales == "learned" else None

    @property
    def scale(self) -> Tensor:
        """Return the scales as they are now, above 0; float32, one element or one per channel."""
        return self.base if self.factor is None else self.base * self.factor.clamp(min=_SMALLEST_FACTOR)

    def nearest(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return the values of the grid with this scale that are nearest."""
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, scale, self.zero_point, self.qmin, self.qmax)
        return torch.fake_quantize_per_channel_affine(
            x, scale, self.zero_point, self.axis % x.ndim, self.qmin, self.qmax
        )

    def quantize(self, x: Tensor) -> Tensor:
        """Return the values of the grid that are nearest; a trained scale learns as in LSQ."""
        learns = self.factor is not None and torch.is_grad_enabled()
        return self._learning(x) if learns else self.nearest(x, self.scale)

    def _learning(self, x: Tensor) -> Tensor:
        shared = max(1, self._features(x) // self.base.numel()) * max(self.qmax, 1)
        zero_point, strength = self.zero_point.float(), shared**-0.5
        if self.axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(
                x, self.scale, zero_point, self.qmin, self.qmax, strength
            )
        return torch._fake_quantize_learnable_per_channel_affine(
            x, self.scale, zero_point, self.axis % x.ndim, self.qmin, self.qmax, strength
        )

    def _features(self, x: Tensor) -> int:
        """Return how many numbers the scales serve, the paper's n."""
        return x.numel()


class WeightQuantizer(Quantizer):
    """A stored weight: trained in float, used as integers.

    It is trained in units of its channel's range: a step of one size then suits channels with small and large weights,
    which lie orders of magnitude apart once batch normalizations are folded. Its scale moves while the integers stay,
    and the gradient is that of the whole value after the scale. LSQ holds the float weight instead: from learned
    rounding, where every integer counts, that made the loss of a 4-bit ResNet-20 rise fivefold in 100 steps.

    Args:
        weight: the float weight to begin with, in the shape it is stored in.
    """

    unit: Tensor

    def __init__(self, weight: Tensor, grid: Grid, *, scales: Scales) -> None:
        super().__init__(grid, scales=scales)
        self.axes = weight.ndim
        self.register_buffer("unit", self._along(self.base) * max(-self.qmin, self.qmax))
        self.latent = nn.Parameter(weight / self.unit)

    def forward(self) -> Tensor:
        """Return the weight as the engine will multiply with it."""
        value = self.nearest(self.latent * self.unit, self.base)
        return value if self.factor is None else value * self._along(self.scale / self.base)

    def integers(self) -> Tensor:
        """Return the integers to store, int32, in the weight's shape."""
        weight = self.latent.detach() * self.unit
        steps = torch.round(weight / self._along(self.base)) + self._along(self.zero_point)
        return steps.clamp(self.qmin, self.qmax).to(torch.int32)

    def _along(self, parameter: Tensor) -> Tensor:
        """Return a parameter in a form that stretches to the weight's shape."""
        if self.axis is None:
            return parameter.reshape(())
        return parameter.reshape([-1 if at == self.axis else 1 for at in range(self.axes)])


class ActivationQuantizer(Quantizer):
    """A QuantizeLinear and the DequantizeLinears that read it.

    Where it does not round it only cuts, as an engine does that adds before it rounds.

    With observed scales the extremes move with every batch until `frozen`, and scale and zero point follow: zero stays
    on the grid, and a symmetric grid symmetric.
    """

    low: Tensor
    high: Tensor

    def __init__(self, grid: Grid, *, scales: Scales) -> None:
        super().__init__(grid, scales=scales)
        self.observes = scales == "observed" and grid.axis is None
        self.frozen = False
        self.rounds = True
        self.register_buffer("low", (grid.qmin - self.zero_point) * self.base)
        self.register_buffer("high", (grid.qmax - self.zero_point) * self.base)
        self._affine = bool((self.zero_point != 0).any())

    def forward(self, x: Tensor) -> Tensor:
        """Return the values that the engine's integers stand for."""
        if not self.rounds:
            shape = [] if self.axis is None else [-1 if at == self.axis % x.ndim else 1 for at in range(x.ndim)]
            return x.clamp(self.low.reshape(shape), self.high.reshape(shape))
        if self.observes and self.training and not self.frozen:
            self._observe(x.detach())
        return self.quantize(x)

    def _features(self, x: Tensor) -> int:
        return x.numel() // max(1, len(x))  # of one row: a process' part of a batch counts like the whole

    def _observe(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        self.low.lerp_(low.clamp(max=0), MOMENTUM)
        self.high.lerp_(high.clamp(min=0), MOMENTUM)
        if self._affine:
            self.base.copy_((self.high - self.low) / (self.qmax - self.qmin)).clamp_(
                min=torch.finfo(torch.float32).tiny
            )
            self.zero_point.copy_((self.qmin - torch.round(self.low / self.base)).clamp(self.qmin, self.qmax))
        else:
            below = self.low / self.qmin if self.qmin < 0 else torch.zeros_like(self.low)
            reach = torch.maximum(self.high / self.qmax, below)
            self.base.copy_(reach).clamp_(min=torch.finfo(torch.float32).tiny)
