"""The recipe in torchao's words: how activations and weights are observed and stored."""

from dataclasses import dataclass

import torch
from torch.fx import Node
from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from app.domain.recipes import PtqStatic
from workers.toolchains.torchao import operators
from workers.toolchains.torchao.observers import LARGEST_WEIGHT, SettlingHistogram, SettlingMinMax
from workers.toolchains.torchao.operators import Compute, shape_of

_MATRIX_AXES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Specs:
    """What the quantizer writes beside activations and weights."""

    recipe: PtqStatic
    activation: QuantizationSpec

    @classmethod
    def of(cls, recipe: PtqStatic) -> "Specs":
        """Read a recipe."""
        observer = SettlingHistogram if recipe.observer == "mse" else SettlingMinMax
        # data type and scheme are only a beginning: the observer settles them when it knows the range
        activation = QuantizationSpec(
            dtype=torch.uint8, observer_or_fake_quant_ctr=observer, qscheme=torch.per_tensor_affine
        )
        return cls(recipe=recipe, activation=activation)

    @property
    def table(self) -> QuantizationSpec:
        """How an embedding's table is stored: with one scale per row, which is what a reader takes of it."""
        return self._weight(0 if self.recipe.weight_granularity == "per_channel" else None)

    def weight(self, node: Node, compute: Compute, weight: Node) -> QuantizationSpec:
        """Return how a layer's weight is stored: int8, with one scale per output channel where the recipe wants it."""
        per_channel = self.recipe.weight_granularity == "per_channel"
        return self._weight(_output_axis(node, compute, weight) if per_channel else None)

    def _weight(self, axis: int | None) -> QuantizationSpec:
        symmetric = self.recipe.weights == "symmetric"
        if axis is None:
            observer, scheme = MinMaxObserver, torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        else:
            observer = PerChannelMinMaxObserver
            scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
        return QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=observer,
            quant_min=-LARGEST_WEIGHT if symmetric else -LARGEST_WEIGHT - 1,
            quant_max=LARGEST_WEIGHT,
            qscheme=scheme,
            ch_axis=axis,
        )


def _output_axis(node: Node, compute: Compute, weight: Node) -> int | None:
    """Return the weight's axis that counts output channels; None where there is none of its own."""
    axes = len(shape_of(weight))
    if axes < _MATRIX_AXES:
        return None
    if compute.kind == "product":
        # of a stack of matrices no engine takes a scale per column
        return axes - 1 if axes == _MATRIX_AXES else None
    if operators.is_transposed(node):
        # with groups the axis counts the channels of one group: a scale would belong to several outputs
        return 1 if operators.groups(node) == 1 else None
    return 0
