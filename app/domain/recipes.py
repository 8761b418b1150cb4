"""Recipes: what to do to a model. One record per technique and one line in `TECHNIQUES`."""

from dataclasses import dataclass
from typing import Literal

from app.domain.errors import RecipeInvalid

MOST_CALIBRATION_ROWS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PtqStatic:
    """Static post-training quantization to 8-bit weights and activations (Jacob et al. 2018).

    Attributes:
        toolchain: what transforms the graph.
        activations: `symmetric` fixes the zero point at the middle of the range; `asymmetric` sets it from the data.
        weights: `symmetric` keeps zero_point 0.
        activation_granularity: one scale for a whole tensor, or one per channel where the engine can.
        weight_granularity: one scale for a whole weight, or one per output channel.
        calibration_rows: how many rows set the ranges, 1 to 100,000; fewer are used if the dataset has fewer.
        seed: picks which rows.
        bias_correction: `fast` corrects each layer's mean shift once, `full` layer after layer on the
            partly quantized graph (Nagel et al. 2019, section 4.2).
        float_layers: names of graph nodes that stay in float.
    """

    technique: Literal["ptq_static"] = "ptq_static"
    toolchain: Literal["nncf"] = "nncf"
    activations: Literal["symmetric", "asymmetric"] = "symmetric"
    weights: Literal["symmetric", "asymmetric"] = "symmetric"
    activation_granularity: Literal["per_tensor", "per_channel"] = "per_tensor"
    weight_granularity: Literal["per_tensor", "per_channel"] = "per_channel"
    calibration_rows: int = 300
    seed: int = 0
    bias_correction: Literal["none", "fast", "full"] = "full"
    float_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.calibration_rows <= MOST_CALIBRATION_ROWS:
            raise RecipeInvalid(f"calibration_rows is {self.calibration_rows}: take 1 to {MOST_CALIBRATION_ROWS}.")
        if not 0 <= self.seed < 2**32:
            raise RecipeInvalid(f"seed is {self.seed}: take 0 to 4294967295.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Store the weights in a shorter float and run in it, where the CPU can. Needs no calibration."""

    technique: Literal["cast"] = "cast"
    precision: Literal["bfloat16"] = "bfloat16"


Recipe = PtqStatic | Cast

TECHNIQUES: dict[str, type[PtqStatic] | type[Cast]] = {
    "ptq_static": PtqStatic,
    "cast": Cast,
}


def variant_name(recipe: Recipe) -> str:
    """Return the name a variant of this recipe gets unless the user chooses one."""
    return recipe.precision if isinstance(recipe, Cast) else "int8"
