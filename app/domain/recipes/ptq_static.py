"""Static post-training quantization: ranges from calibration rows."""

from dataclasses import dataclass
from typing import Literal

from app.domain.recipes.static import StaticQuantization


@dataclass(frozen=True, slots=True, kw_only=True)
class PtqStatic(StaticQuantization):
    """Static quantization as the calibration rows have it, without training."""

    technique: Literal["ptq_static"] = "ptq_static"
