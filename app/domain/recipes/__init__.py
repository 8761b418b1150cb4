"""Recipes: what to do to a model. One file per technique and one line in `TECHNIQUES`.

Every record says for itself what the rest of Octet asks of it: `needs_calibration`, `default_name` and, but for `auto`,
`expects_int8`: whether the engine must run int8 kernels for the variant to be worth publishing.
"""

from app.domain.recipes.auto import Auto, Budget
from app.domain.recipes.cast import Cast
from app.domain.recipes.limits import LearnsFromRows
from app.domain.recipes.ptq_dynamic import PtqDynamic
from app.domain.recipes.ptq_static import PtqStatic
from app.domain.recipes.qat import Qat
from app.domain.recipes.static import StaticQuantization
from app.domain.recipes.weight_only import WeightOnly

__all__ = [
    "FROM_UPLOAD",
    "TECHNIQUES",
    "Auto",
    "Budget",
    "Cast",
    "LearnsFromRows",
    "PtqDynamic",
    "PtqStatic",
    "Qat",
    "Recipe",
    "Single",
    "StaticQuantization",
    "WeightOnly",
]

Single = PtqStatic | PtqDynamic | WeightOnly | Cast | Qat
"""A recipe that makes one artifact."""

Recipe = Single | Auto
"""What a job may be asked for."""

FROM_UPLOAD = frozenset({"torchao"})
"""Toolchains that start from the `.pt2` itself, and may execute what is in it."""

TECHNIQUES: dict[str, type[Recipe]] = {
    "ptq_static": PtqStatic,
    "ptq_dynamic": PtqDynamic,
    "weight_only": WeightOnly,
    "cast": Cast,
    "qat": Qat,
    "auto": Auto,
}
