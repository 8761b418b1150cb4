"""Observers: the library's, told only after calibration whether their range is signed."""

from typing import Literal

import torch
from torchao.quantization.pt2e.observer import HistogramObserver, MinMaxObserver

from app.domain.errors import ToolchainFailed

Symmetry = Literal["symmetric", "asymmetric"]
WantedDType = Literal["auto", "uint8", "int8"]

LARGEST_WEIGHT = 127
"""Weights and symmetric int8 activations keep to -127..127, so that the largest value has a number of its own."""


class Settling:
    """What both observers share: `settle` chooses the data type once the range is known.

    `torchao` reads data type, scheme and bounds from the observer when it converts, so they may follow from the rows.
    """

    dtype: torch.dtype
    qscheme: torch.qscheme
    quant_min: int
    quant_max: int
    has_customized_qrange: bool
    min_val: torch.Tensor
    max_val: torch.Tensor

    def settle(self, symmetry: Symmetry, wanted: WantedDType) -> None:
        """Choose the data type and the scheme from the range that was seen.

        A range without values below zero is unsigned and starts at zero point 0, symmetric or not (Krishnamoorthi
        2018, arXiv:1806.08342, section 2.2).

        Raises:
            ToolchainFailed: the rows gave values that are no numbers.
        """
        if bool(torch.isnan(self.min_val)) or bool(torch.isnan(self.max_val)):
            raise ToolchainFailed(
                "The calibration rows make a layer's values not a number: look for rows with NaN, or normalize them."
            )
        positive = bool(self.min_val >= 0)
        unsigned = wanted == "uint8" or (wanted == "auto" and (positive or symmetry == "asymmetric"))
        affine = symmetry == "asymmetric" or (unsigned and positive)
        self.dtype = torch.uint8 if unsigned else torch.int8
        self.qscheme = torch.per_tensor_affine if affine else torch.per_tensor_symmetric
        # a customized range would move the unsigned middle from 128 to 127
        self.has_customized_qrange = False
        self.quant_min, self.quant_max = _bounds(self.dtype, affine=affine)


class SettlingMinMax(Settling, MinMaxObserver):  # type: ignore[misc] # the library is not typed
    """The extremes of all rows."""


class SettlingHistogram(Settling, HistogramObserver):  # type: ignore[misc] # the library is not typed
    """The range with the least squared error on a histogram of all rows."""


def _bounds(dtype: torch.dtype, *, affine: bool) -> tuple[int, int]:
    if dtype is torch.uint8:
        return 0, 255
    return (-128, 127) if affine else (-LARGEST_WEIGHT, LARGEST_WEIGHT)
