"""Dynamic post-training quantization: 8-bit weights, activations quantized while they pass. Needs no rows."""

from dataclasses import dataclass
from typing import Literal

from app.domain.errors import RecipeInvalid
from app.domain.recipes.limits import check_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class PtqDynamic:
    """Dynamic post-training quantization, for transformers and recurrent nets.

    Attributes:
        toolchain: `nncf` stores int8 weights, and the engine quantizes activations in groups of `group_size` along
            the row, so that a row's answer depends on no other row. `ort` writes the quantization of the activations
            into the graph, one scale for a whole tensor, the whole batch included.
        weights: `symmetric` keeps zero_point 0.
        weight_granularity: one scale for a whole weight, or one per output channel.
        group_size: only for `nncf`: how many activations share a scale, 16 to 1,024; None is 32.
        float_layers: names of graph nodes that stay in float.
        float_precision: what the layers left in float run in.
    """

    technique: Literal["ptq_dynamic"] = "ptq_dynamic"
    toolchain: Literal["nncf", "ort"] = "nncf"
    weights: Literal["symmetric", "asymmetric"] = "symmetric"
    weight_granularity: Literal["per_tensor", "per_channel"] = "per_channel"
    group_size: int | None = None
    float_layers: tuple[str, ...] = ()
    float_precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_layers(self.float_layers, field="float_layers")
        if self.toolchain == "ort" and self.group_size is not None:
            raise RecipeInvalid("The toolchain 'ort' takes one scale per tensor: leave group_size out, or take nncf.")
        if self.toolchain == "nncf" and self.weight_granularity == "per_tensor":
            raise RecipeInvalid("The toolchain 'nncf' takes one scale per channel: take ort for per_tensor.")
        if self.toolchain == "nncf" and self.group_size is None:
            object.__setattr__(self, "group_size", 32)
        if self.group_size is not None and not 16 <= self.group_size <= 1024:  # noqa: PLR2004
            raise RecipeInvalid(f"group_size is {self.group_size}: take 16 to 1024.")

    @property
    def needs_calibration(self) -> bool:
        return False

    @property
    def expects_int8(self) -> bool:
        return True

    @property
    def default_name(self) -> str:
        return "int8-dynamic"
