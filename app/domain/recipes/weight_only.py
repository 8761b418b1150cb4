"""Weight-only quantization: weights stored in 8 or 4 bits, arithmetic in float."""

from dataclasses import dataclass
from typing import Literal

from app.domain.errors import RecipeInvalid
from app.domain.recipes.limits import check_layers, check_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnly:
    """Weights in 8 or 4 bits, activations in float: smaller files and less memory traffic.

    Attributes:
        bits: of a weight, 8 or 4.
        weights: `symmetric` keeps zero_point 0.
        group_size: how many weights along the input axis share a scale, 16 to 4,096; None is one scale per output
            channel. It must divide the input axis of every layer that is not in `float_layers`.
        rounding: `nearest`; `gptq` (Frantar et al. 2022, arXiv:2210.17323), `adaround` (Nagel et al. 2020,
            arXiv:2004.10568) and `brecq` (Li et al. 2021, arXiv:2102.05426) learn it from calibration rows.
        awq: scale the channels by their activations first (Lin et al. 2023, arXiv:2306.00978). Needs 4 bits.
        scale_estimation: choose the scales by the layers' outputs. Needs 4 bits.
        embeddings: whether lookup tables are quantized too.
        calibration_rows, seed: which rows teach the rounding and scales, where that is asked for.
        float_layers: names of graph nodes that stay in float.
        float_precision: what the engine computes in.
    """

    technique: Literal["weight_only"] = "weight_only"
    toolchain: Literal["nncf"] = "nncf"
    bits: Literal[4, 8] = 8
    weights: Literal["symmetric", "asymmetric"] = "symmetric"
    group_size: int | None = None
    rounding: Literal["nearest", "gptq", "adaround", "brecq"] = "nearest"
    awq: bool = False
    scale_estimation: bool = False
    embeddings: bool = True
    calibration_rows: int = 128
    seed: int = 0
    float_layers: tuple[str, ...] = ()
    float_precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_rows(self.calibration_rows, self.seed)
        check_layers(self.float_layers, field="float_layers")
        if self.group_size is not None and not 16 <= self.group_size <= 4096:  # noqa: PLR2004
            raise RecipeInvalid(f"group_size is {self.group_size}: take 16 to 4096, or null for one per channel.")
        if self.bits == 8 and (self.awq or self.scale_estimation or self.group_size):  # noqa: PLR2004
            raise RecipeInvalid("awq, scale_estimation and group_size are for 4-bit weights: set bits to 4.")
        if self.rounding in ("adaround", "brecq") and (self.awq or self.scale_estimation or self.group_size):
            raise RecipeInvalid(
                f"rounding {self.rounding!r} learns with one scale per channel: leave awq, scale_estimation and "
                "group_size out."
            )
        if self.rounding in ("adaround", "brecq") and self.weights == "asymmetric":
            raise RecipeInvalid(f"rounding {self.rounding!r} is symmetric: set weights to symmetric.")

    @property
    def needs_calibration(self) -> bool:
        return self.awq or self.scale_estimation or self.rounding != "nearest"

    @property
    def expects_int8(self) -> bool:
        return False

    @property
    def default_name(self) -> str:
        return f"int{self.bits}-weights"
