"""Why a variant that was made is not published all the same."""

from app.domain.errors import JobFailure, LargerThanFloat, NoInt8Kernels, SilentFallback
from app.domain.evidence import Receipt
from app.domain.recipes import Single, StaticQuantization
from app.domain.reports import Kernels, Report
from app.domain.variants import Artifact, Variant

_NAMED = 5


def why(variant: Variant, report: Report, float32: Variant) -> JobFailure | None:
    """Return the first reason not to publish a measured variant; None if there is none."""
    recipe = variant.recipe
    if recipe is None:
        return None
    return (
        larger(variant.artifact, float32.artifact, name=variant.name)
        or without_int8(recipe, report.kernels[variant.name])
        or fallen_back(recipe, report.receipt)
    )


def larger(artifact: Artifact, float32: Artifact, *, name: str) -> JobFailure | None:
    """Refuse an artifact that is no smaller than float32's."""
    if artifact.size_bytes < float32.size_bytes:
        return None
    return LargerThanFloat(
        f"The variant has {artifact.size_bytes} bytes and its float32 parent {float32.size_bytes}: the model is too "
        f"small to gain from {name}, so nothing was published."
    )


def check_smaller(artifact: Artifact, float32: Artifact, *, name: str) -> None:
    """Check before more work is spent on it that an artifact is smaller than float32's.

    Raises:
        LargerThanFloat: it is not.
    """
    failure = larger(artifact, float32, name=name)
    if failure is not None:
        raise failure


def without_int8(recipe: Single, kernels: Kernels) -> JobFailure | None:
    """Refuse an int8 variant of which the engine runs nothing in int8."""
    if not recipe.expects_int8 or kernels.int8_layers:
        return None
    ran = ", ".join(sorted({layer.precision for layer in kernels.layers})) or "nothing"
    return NoInt8Kernels(
        f"The engine ran none of the {kernels.float_layers} compute layers in int8 (it ran {ran}): "
        "leave fewer layers in float, or use a model with convolutions or matrix products."
    )


def fallen_back(recipe: Single, receipt: Receipt | None) -> JobFailure | None:
    """Refuse a variant with layers that its graph quantizes and the engine runs in float, unless they may be kept."""
    if not recipe.expects_int8 or receipt is None or not receipt.fallbacks or keeps_fallbacks(recipe):
        return None
    fallback = (
        ', or set fallback to "keep"' if isinstance(recipe, StaticQuantization) else ", or take another toolchain"
    )
    return SilentFallback(
        f"The engine runs {_layers(receipt.fallbacks)} in float although the variant's graph quantizes them: "
        f"name them in float_layers{fallback}."
    )


def fallback_note(recipe: Single, receipt: Receipt | None) -> str | None:
    """Say which layers fell back where that was allowed."""
    if receipt is None or not receipt.fallbacks or not keeps_fallbacks(recipe):
        return None
    return f"The engine runs {_layers(receipt.fallbacks)} in float although the graph quantizes them, as allowed."


def keeps_fallbacks(recipe: Single) -> bool:
    """Whether a recipe lets layers fall back."""
    return isinstance(recipe, StaticQuantization) and recipe.fallback == "keep"


def _layers(names: tuple[str, ...]) -> str:
    named = ", ".join(repr(name[:80]) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} layer{'s' if len(names) != 1 else ''} ({named}{more})"
