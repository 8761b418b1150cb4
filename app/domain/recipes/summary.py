"""A recipe in a few words: the toolchain, the technique, and what differs from its defaults."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from app.domain.recipes import TECHNIQUES, Auto, Qat, Recipe

_SILENT = {
    "technique",
    "toolchain",
    "seed",
    "calibration_rows",
    "fallback",
    "budget",
    "time_limit_seconds",
    "looks",
    "checkpoint_seconds",
}

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
    "activation_bits": lambda value: f"{value}-bit activations",
    "int8_layers": lambda value: f"{len(value)} at 8 bits",  # type: ignore[arg-type]
    "float_precision": lambda value: f"float layers in {value}",
    "loss": lambda value: str(value).replace("_", " "),
    "teacher": lambda value: f"teacher {value}",
    "temperature": lambda value: f"temperature {value:g}",
    "epochs": lambda value: _counted(value, "epoch"),
    "steps": lambda value: _counted(value, "step"),
    "batch_size": lambda value: f"batches of {value}",
    "optimizer": lambda value: str(value).upper(),
    "learning_rate": lambda value: f"learning rate {value:g}",
    "weight_decay": lambda value: f"weight decay {value:g}",
    "schedule": lambda value: f"{value} learning rate",
    "warmup": lambda value: f"warm-up of {_share(value)}",
    "gradient_clip": lambda value: "gradients not clipped" if value is None else f"gradients clipped at {value:g}",
    "flip": lambda _: "flips",
    "crop": lambda value: f"crops of {value} pixels",
    "scales": lambda value: f"{value} scales",
    "freeze_observers": lambda value: f"observers frozen after {_share(value)}",
    "freeze_batch_norm": lambda value: f"batch norms frozen after {_share(value)}",
    "held_out": lambda value: f"{_share(value)} held out",
    "patience": lambda value: f"patience of {_counted(value, 'look')}",
    "processes": lambda value: f"{value} processes",
    "compression": lambda value: f"{value} gradients",
}


def _share(value: object) -> str:
    return f"{100 * value:g} %"  # type: ignore[operator]


def _counted(value: object, noun: str) -> str:
    return "" if value is None else f"{value} {noun}{'' if value == 1 else 's'}"


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
    return ", ".join(words for words in (head, *differing) if words)


def _plain(recipe: Recipe) -> dict[str, object]:
    """Return the same toolchain's default recipe, field by field; what follows from other fields is no difference."""
    kind = TECHNIQUES[recipe.technique]
    given: dict[str, Any] = {} if isinstance(recipe, Auto) else {"toolchain": recipe.toolchain}
    default = kind(**given)
    plain = {field.name: getattr(default, field.name) for field in fields(default)}
    if isinstance(recipe, Qat):
        plain["learning_rate"] = replace(recipe, learning_rate=None).learning_rate
    return plain
