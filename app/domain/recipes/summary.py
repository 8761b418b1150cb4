"""A recipe in a few words: the toolchain, the technique, and what differs from its defaults."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from app.domain.recipes import TECHNIQUES, Auto, Recipe

_SILENT = {"technique", "toolchain", "seed", "calibration_rows", "fallback", "budget", "time_limit_seconds"}

_WORDS: dict[str, Callable[[object], str]] = {
    "precision": str,
    "activations": lambda value: f"{value} activations",
    "activation_dtype": lambda value: f"{value} activations",
    "weights": lambda value: f"{value} weights",
    "activation_granularity": lambda value: f"activations {value}",
    "weight_granularity": lambda value: f"weights {value}",
    "observer": lambda value: f"{value} observer",
    "percentile": lambda value: f"{value:g} %",
    "bias_correction": lambda value: f"{value} bias correction",
    "channel_equalization": lambda _: "channel equalization",
    "smooth_quant": lambda value: f"SmoothQuant {value:g}",
    "fold_batch_norm": lambda _: "batch norms not folded",
    "weight_bits": lambda value: f"{value}-bit weights",
    "bits": lambda value: f"{value} bits",
    "group_size": lambda value: f"groups of {value}",
    "rounding": str,
    "awq": lambda _: "AWQ",
    "scale_estimation": lambda _: "scale estimation",
    "embeddings": lambda _: "embeddings in float",
    "float_layers": lambda value: f"{len(value)} in float",  # type: ignore[arg-type]
    "int8_layers": lambda value: f"{len(value)} with 8-bit weights",  # type: ignore[arg-type]
    "float_precision": lambda value: f"float layers in {value}",
}


def summary(recipe: Recipe) -> str:
    """Return words such as `nncf ptq_static, mse observer, 2 in float`."""
    plain = _plain(recipe)
    toolchain = getattr(recipe, "toolchain", None)
    head = " ".join(word for word in (toolchain, recipe.technique) if word and word != "octet")
    differing = [
        _WORDS.get(field.name, lambda value, name=field.name: f"{name} {value}")(getattr(recipe, field.name))
        for field in fields(recipe)
        if field.name not in _SILENT and (field.name == "precision" or getattr(recipe, field.name) != plain[field.name])
    ]
    return ", ".join([head, *differing])


def _plain(recipe: Recipe) -> dict[str, object]:
    """Return the same toolchain's default recipe, field by field."""
    kind = TECHNIQUES[recipe.technique]
    given: dict[str, Any] = {} if isinstance(recipe, Auto) else {"toolchain": recipe.toolchain}
    default = kind(**given)
    return {field.name: getattr(default, field.name) for field in fields(default)}
