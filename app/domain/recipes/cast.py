"""Casting: weights stored in a shorter float."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Store the weights in a shorter float. Needs no calibration.

    Attributes:
        precision: `bfloat16` also runs in it, where the CPU can; `float16` is stored in half and runs in float32.
    """

    technique: Literal["cast"] = "cast"
    toolchain: Literal["octet"] = "octet"
    precision: Literal["bfloat16", "float16"] = "bfloat16"

    @property
    def needs_calibration(self) -> bool:
        return False

    @property
    def expects_int8(self) -> bool:
        return False

    @property
    def default_name(self) -> str:
        return self.precision
