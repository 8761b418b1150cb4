"""What a recipe says of static quantization, whether it is only calibrated (`ptq_static`) or trained (`qat`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from app.domain.errors import RecipeInvalid
from app.domain.recipes.limits import check_layers, check_rows

Observer = Literal["min_max", "percentile", "mse", "entropy"]
BiasCorrection = Literal["none", "fast", "full"]


WIDE = 8
"""Bits of a weight or an activation that has all the values of its stored type."""

OFFERS: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "nncf": {
        "observer": ("min_max", "percentile", "mse"),
        "bias_correction": ("none", "fast", "full"),
        "activation_granularity": ("per_tensor", "per_channel"),
    },
    "ort": {
        "observer": ("min_max", "percentile", "mse", "entropy"),
        "bias_correction": ("none",),
        "activation_granularity": ("per_tensor",),
        "smooth_quant": (None,),
    },
    "torchao": {
        "observer": ("min_max", "mse"),
        "bias_correction": ("none",),
        "activation_granularity": ("per_tensor",),
        "smooth_quant": (None,),
        "channel_equalization": (False,),
        "rounding": ("nearest",),
        "weight_bits": (8,),
        "activation_bits": (8,),
        "int8_layers": ((),),
    },
}
"""What each toolchain can do: the values a field may have; a field that is not listed may have any of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticQuantization:
    """Weights and activations as integers, every range known before the first prediction (Jacob et al. 2018,
    arXiv:1712.05877).

    NNCF's presets are pairs of two fields: `performance` is symmetric activations and weights, `mixed` asymmetric
    activations and symmetric weights.

    Attributes:
        toolchain: what transforms the graph. `torchao` needs a model uploaded as `.pt2`.
        activations: `symmetric` fixes the zero point at the middle of the range; `asymmetric` sets it from the data.
        activation_dtype: `auto` is unsigned where no value is below zero, signed elsewhere, as the toolchain decides.
        weights: `symmetric` keeps zero_point 0. With `asymmetric` OpenVINO was seen to run most layers in float32.
        activation_granularity: one scale for a whole tensor, or one per channel where the engine can.
        weight_granularity: one scale for a whole weight, or one per output channel.
        observer: how a range follows from the calibration rows: the extremes; a percentile of the values; the range
            with the least squared error on a histogram; the one with the least KL divergence (Migacz 2017).
        percentile: only for that observer: the share of values inside the range, in percent, 90 to 100; None is 99.99.
        calibration_rows: how many rows set the ranges, 1 to 100,000; fewer are used if the dataset has fewer.
        seed: picks which rows.
        bias_correction: `fast` corrects each layer's mean shift once, `full` layer after layer on the
            partly quantized graph (Nagel et al. 2019, arXiv:1906.04721, section 4.2). None is `full` where the
            toolchain has it, `none` elsewhere.
        channel_equalization: bring the weights' ranges of neighbouring layers together first (same paper, section 4.1).
        smooth_quant: alpha of SmoothQuant (Xiao et al. 2022, arXiv:2211.10438), 0 to 1; None leaves it out.
        fold_batch_norm: put a batch normalization into the convolution before it, first of all.
        weight_bits: 4 or 2 puts the weights on a grid of so many bits, -8 to 7 or -2 to 1; they are stored and run as
            int8, for no engine here multiplies narrower weights with 8-bit activations.
        activation_bits: 4 cuts the activations that a layer multiplies with to 16 levels of a uint8 or int8, with the
            least squared error whatever the observer; the engine runs the same int8 kernels. What only additions and
            the like read keeps 8 bits.
        rounding: `nearest`; or learned on the calibration rows, layer by layer (`adaround`, Nagel et al. 2020,
            arXiv:2004.10568) or block by block (`brecq`, Li et al. 2021, arXiv:2102.05426).
        float_layers: names of graph nodes that stay in float, at most 1,000 of at most 200 characters.
        int8_layers: names of graph nodes that keep 8 bits, weights and what they read, where others have fewer.
        float_precision: what the layers left in float run in: `bfloat16` is the 16-bit override.
        fallback: what happens when the engine runs a quantized layer in float: `refuse` fails the job and names the
            layers, `keep` publishes and names them in the report.
    """

    technique: str = ""
    toolchain: Literal["nncf", "ort", "torchao"] = "nncf"
    activations: Literal["symmetric", "asymmetric"] = "symmetric"
    activation_dtype: Literal["auto", "uint8", "int8"] = "auto"
    weights: Literal["symmetric", "asymmetric"] = "symmetric"
    activation_granularity: Literal["per_tensor", "per_channel"] = "per_tensor"
    weight_granularity: Literal["per_tensor", "per_channel"] = "per_channel"
    observer: Observer = "min_max"
    percentile: float | None = None
    calibration_rows: int = 300
    seed: int = 0
    bias_correction: BiasCorrection | None = None
    channel_equalization: bool = False
    smooth_quant: float | None = None
    fold_batch_norm: bool = True
    weight_bits: Literal[2, 4, 8] = 8
    activation_bits: Literal[4, 8] = 8
    rounding: Literal["nearest", "adaround", "brecq"] = "nearest"
    float_layers: tuple[str, ...] = ()
    int8_layers: tuple[str, ...] = ()
    float_precision: Literal["float32", "bfloat16"] = "float32"
    fallback: Literal["refuse", "keep"] = "refuse"

    def __post_init__(self) -> None:
        if self.bias_correction is None:  # the record always says what was done
            object.__setattr__(self, "bias_correction", OFFERS[self.toolchain]["bias_correction"][-1])
        if self.observer == "percentile" and self.percentile is None:
            object.__setattr__(self, "percentile", 99.99)
        check_rows(self.calibration_rows, self.seed)
        check_layers(self.float_layers, field="float_layers")
        check_layers(self.int8_layers, field="int8_layers")
        _check_offered(self)
        _check_consistent(self)

    @property
    def needs_calibration(self) -> bool:
        return True

    @property
    def expects_int8(self) -> bool:
        return True

    @property
    def default_name(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}" if self.narrow else "int8"

    @property
    def narrow(self) -> bool:
        """Whether weights or activations have fewer bits than they are stored in."""
        return self.weight_bits != WIDE or self.activation_bits != WIDE


def _check_offered(recipe: StaticQuantization) -> None:
    for field, values in OFFERS[recipe.toolchain].items():
        value = getattr(recipe, field)
        if value not in values:
            others = [name for name, offers in OFFERS.items() if value in offers.get(field, (value,))]
            raise RecipeInvalid(
                f"The toolchain {recipe.toolchain!r} has no {field} {value!r}: take {' or '.join(others)} for that, or "
                f"{' or '.join(map(repr, values))}."
            )


def _check_consistent(recipe: StaticQuantization) -> None:
    if recipe.percentile is not None and recipe.observer != "percentile":
        raise RecipeInvalid(f"percentile goes with the observer 'percentile', not {recipe.observer!r}: leave one out.")
    if recipe.percentile is not None and not 90 <= recipe.percentile <= 100:  # noqa: PLR2004
        raise RecipeInvalid(f"percentile is {recipe.percentile:g}: take 90 to 100.")
    if recipe.smooth_quant is not None and not 0 <= recipe.smooth_quant <= 1:
        raise RecipeInvalid(f"smooth_quant is {recipe.smooth_quant:g}: take an alpha of 0 to 1.")
    if recipe.activation_bits != WIDE and recipe.activation_granularity == "per_channel":
        raise RecipeInvalid(
            "Activations of fewer than 8 bits have one scale for a whole tensor: set activation_granularity to "
            "per_tensor."
        )
    if recipe.int8_layers and not recipe.narrow:
        raise RecipeInvalid("int8_layers names layers that keep 8 bits while all have 8: leave it out.")
    both = sorted(set(recipe.float_layers) & set(recipe.int8_layers))
    if both:
        raise RecipeInvalid(f"Layer {both[0]!r} is named in float_layers and in int8_layers: name it in one.")
    if recipe.weights == "asymmetric" and (recipe.weight_bits != WIDE or recipe.rounding != "nearest"):
        raise RecipeInvalid(
            "Weights of fewer than 8 bits and learned rounding are symmetric: set weights to symmetric."
        )
