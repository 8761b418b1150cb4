"""Recipes: what to do to a model. One record per technique and one line in `TECHNIQUES`."""

from dataclasses import dataclass
from typing import Literal

from app.domain.errors import RecipeInvalid

MOST_CALIBRATION_ROWS = 100_000
MOST_FLOAT_LAYERS = 1000
LONGEST_LAYER_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PtqStatic:
    """Static post-training quantization to 8-bit weights and activations (Jacob et al. 2018).

    Attributes:
        toolchain: what transforms the graph.
        activations: `symmetric` fixes the zero point at the middle of the range; `asymmetric` sets it from the data.
        weights: `symmetric` keeps zero_point 0. With `asymmetric` OpenVINO was seen to run most layers in float32,
            slower than float32 itself: look at the report's `int8_layers`, `float_layers` and `int8_share`.
        activation_granularity: one scale for a whole tensor, or one per channel where the engine can.
        weight_granularity: one scale for a whole weight, or one per output channel.
        calibration_rows: how many rows set the ranges, 1 to 100,000; fewer are used if the dataset has fewer.
        seed: picks which rows.
        bias_correction: `fast` corrects each layer's mean shift once, `full` layer after layer on the
            partly quantized graph (Nagel et al. 2019, section 4.2).
        float_layers: names of graph nodes that stay in float, at most 1,000 of at most 200 characters.
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
        if len(self.float_layers) > MOST_FLOAT_LAYERS:
            raise RecipeInvalid(f"float_layers has {len(self.float_layers)} names: take at most {MOST_FLOAT_LAYERS}.")
        if any(len(name) > LONGEST_LAYER_NAME for name in self.float_layers):
            raise RecipeInvalid(
                f"float_layers has a longer name than {LONGEST_LAYER_NAME} characters: take shorter ones."
            )


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
