"""Rounding as a number between down and up that gradients can move (Nagel et al. 2020, arXiv:2004.10568)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.toolchains.octet.rounding.layers import Floats, Grid

ZETA, GAMMA = 1.1, -0.1
"""How far the sigmoid is stretched beyond 1 and 0, so that it reaches both (after equation 23)."""

FREE_SHARE = 0.2
"""The first steps, in which nothing pushes towards 0 or 1."""

BETA_START, BETA_END = 20.0, 2.0

_AT_ONCE = 2**18
"""Weights whose derivative is worked out together: what lies in between stays small."""

Loss = Callable[[Sequence[Tensor]], Tensor]
"""The reconstruction error of some weights, as a share of what rounding to nearest adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to learn.

    Attributes:
        pressure: weight of the regularizer's mean (equation 24) against a loss of 1.
    """

    steps: int
    rate: float = 3e-2
    pressure: float = 10.0


class SoftWeight:
    """A weight between its two neighbours on the grid: `scale * clip(floor(weight / scale) + h(V))` (equation 22).

    Its derivative is written out, for torch's own bookkeeping would need several times the memory of the weight.

    Attributes:
        logits: V.
    """

    def __init__(self, weight: Floats, grid: Grid) -> None:
        down = np.floor(weight / grid.scale)
        rest = weight / grid.scale - down
        self._down = torch.from_numpy(down.astype(np.float32))
        self._scale = torch.from_numpy(np.array(grid.scale, np.float32))
        self._low = torch.from_numpy(np.asarray(grid.qmin - grid.zero_point, np.float32))
        self._high = torch.from_numpy(np.asarray(grid.qmax - grid.zero_point, np.float32))
        self.logits = inverse(torch.from_numpy(rest.astype(np.float32)))

    def value(self) -> Tensor:
        """Return the weight as it is now."""
        h = torch.sigmoid(self.logits).mul_(ZETA - GAMMA).add_(GAMMA).clamp_(0, 1)
        return h.add_(self._down).clamp_(self._low, self._high).mul_(self._scale)

    def slope(self, value_slope: Tensor, *, beta: float | None, pressure: float) -> Tensor:
        """Return the derivative of loss + pressure * sum(1 - |2 h(V) - 1|^beta) after V; without beta, of the loss.

        `value_slope` is the loss's derivative after `value()`. It is overwritten.
        """
        most = max(1, _AT_ONCE * len(value_slope) // value_slope.numel())
        for start in range(0, len(value_slope), most):
            self._slope(value_slope, slice(start, start + most), beta=beta, pressure=pressure)
        return value_slope

    def _slope(self, value_slope: Tensor, rows: slice, *, beta: float | None, pressure: float) -> None:
        scale, low, high = (self._rows(each, rows) for each in (self._scale, self._low, self._high))
        share = torch.sigmoid(self.logits[rows])
        stretched = share * (ZETA - GAMMA) + GAMMA
        h = stretched.clamp(0, 1)
        at = self._down[rows] + h
        slope = value_slope[rows]
        slope.mul_(scale).masked_fill_((at > high) | (at < low), 0)
        if beta is not None:
            off = h.mul_(2).sub_(1)
            slope.sub_(off.abs().pow_(beta - 1).mul_(off.sign()).mul_(2 * beta * pressure))
        slope.mul_(share * (1 - share) * (ZETA - GAMMA)).masked_fill_((stretched <= 0) | (stretched >= 1), 0)

    def _rows(self, parameter: Tensor, rows: slice) -> Tensor:
        return parameter[rows] if parameter.ndim and len(parameter) > 1 else parameter

    def integers(self, grid: Grid) -> NDArray[np.int32]:
        """Return the integers that the weight has moved to."""
        chosen: NDArray[np.float32] = (self._down + (self.logits >= 0)).numpy()
        integers: NDArray[np.int32] = np.clip(chosen + grid.zero_point, grid.qmin, grid.qmax).astype(np.int32)
        return integers


def rectified(logits: Tensor) -> Tensor:
    """Return the rectified sigmoid h(V), 0 to 1 (equation 23)."""
    return (torch.sigmoid(logits) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse(share: Tensor) -> Tensor:
    """Return V so that h(V) is `share`, at least 0 and less than 1: learning starts at the float weight."""
    return torch.logit((share - GAMMA) / (ZETA - GAMMA))


def anneal(weights: Sequence[SoftWeight], loss: Loss, effort: Effort) -> None:
    """Move weights to where the loss is least, and then each to one of its neighbours, with Adam.

    Beta falls along a half cosine: while it is high only weights near a neighbour are pulled to it, at the end all are.
    """
    logits = [weight.logits for weight in weights]
    pressure = effort.pressure / sum(each.numel() for each in logits)
    optimizer = torch.optim.Adam(logits, lr=effort.rate, fused=True)
    for step in range(effort.steps):
        values = [weight.value().requires_grad_() for weight in weights]
        loss(values).backward()  # type: ignore[no-untyped-call]
        beta = beta_at(step / effort.steps)
        for weight, value in zip(weights, values, strict=True):
            given = value.grad if value.grad is not None else torch.zeros_like(value)
            weight.logits.grad = weight.slope(given, beta=beta, pressure=pressure)
        optimizer.step()


def beta_at(share: float) -> float | None:
    """Return beta after a share, 0 to 1, of the steps; None while weights are free."""
    if share < FREE_SHARE:
        return None
    under_way = (share - FREE_SHARE) / (1 - FREE_SHARE)
    return BETA_END + (BETA_START - BETA_END) * 0.5 * (1 + float(np.cos(under_way * np.pi)))
