"""Recipes on the command line: from options, from a JSON file, or both, where an option wins."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import TypeAdapter, ValidationError

from app.domain.errors import RecipeInvalid
from app.domain.recipes import TECHNIQUES, Budget, Recipe, StaticQuantization

Symmetry = Literal["symmetric", "asymmetric"]
Granularity = Literal["per_tensor", "per_channel"]
_RECIPE, _ROWS, _WEIGHTS, _BUDGET, _TRAINING = (
    "Recipe",
    "Rows and layers",
    "Activations and weights",
    "Budget: search for the best",
    "Training: technique qat",
)
BUDGET_FIELDS = frozenset({"metric", "max_drop", "max_latency_ms", "max_size_bytes"})


def _option(*names: str, panel: str, text: str | None = None, least: float | None = None) -> Any:  # noqa: ANN401 - typer's own
    return typer.Option(*names, rich_help_panel=panel, help=text, min=least)


Technique = Annotated[
    str | None,
    _option(
        panel=_RECIPE,
        text=f"One of {', '.join(TECHNIQUES)}; default: ptq_static; qat with --training, auto with a budget.",
    ),
]
Toolchain = Annotated[str | None, _option(panel=_RECIPE, text="With what, such as nncf, ort or torchao.")]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe", exists=True, dir_okay=False, rich_help_panel=_RECIPE, help="JSON file with any field; options win."
    ),
]
Auto = Annotated[bool, _option("--auto", panel=_BUDGET, text="Short for --technique auto.")]
Metric = Annotated[str | None, _option(panel=_BUDGET, text="Such as top1; default: what the rows can tell.")]
MaxDrop = Annotated[float | None, _option(panel=_BUDGET, text="In the metric's unit: 0.005 of top1 is half a point.")]
MaxLatency = Annotated[float | None, _option("--max-latency-ms", panel=_BUDGET, text="Median time of one row.")]
MaxSize = Annotated[int | None, _option("--max-size-bytes", panel=_BUDGET, text="Of the artifact.")]
TimeLimit = Annotated[int | None, _option("--time-limit", panel=_BUDGET, text="Seconds after which no trial starts.")]
Activations = Annotated[Symmetry | None, _option(panel=_WEIGHTS)]
Weights = Annotated[Symmetry | None, _option(panel=_WEIGHTS)]
ActivationGranularity = Annotated[Granularity | None, _option(panel=_WEIGHTS)]
WeightGranularity = Annotated[Granularity | None, _option(panel=_WEIGHTS)]
Observer = Annotated[Literal["min_max", "percentile", "mse", "entropy"] | None, _option(panel=_WEIGHTS)]
BiasCorrection = Annotated[Literal["none", "fast", "full"] | None, _option(panel=_WEIGHTS)]
SmoothQuant = Annotated[float | None, _option(panel=_WEIGHTS, text="Alpha of SmoothQuant, 0 to 1.")]
Bits = Annotated[int | None, _option(panel=_WEIGHTS, text="Of a weight: 8, 4 or 2.")]
ActivationBits = Annotated[int | None, _option(panel=_WEIGHTS, text="Of an activation: 8 or 4.")]
GroupSize = Annotated[int | None, _option(panel=_WEIGHTS, text="How many values share a scale.")]
Rounding = Annotated[Literal["nearest", "gptq", "adaround", "brecq"] | None, _option(panel=_WEIGHTS)]
CalibrationRows = Annotated[int | None, _option(panel=_ROWS, text="Rows that set the ranges.", least=1)]
Seed = Annotated[int | None, _option(panel=_ROWS, text="Picks which rows.", least=0)]
FloatLayers = Annotated[
    list[str] | None, _option("--float-layer", panel=_ROWS, text="A graph node that stays in float; may be repeated.")
]
Int8Layers = Annotated[
    list[str] | None, _option("--int8-layer", panel=_ROWS, text="A graph node that keeps 8 bits; may be repeated.")
]
Loss = Annotated[
    Literal["distillation", "feature_distillation", "cross_entropy", "mse"] | None,
    _option(panel=_TRAINING, text="The first two, the default among them, need no labels."),
]
Teacher = Annotated[str | None, _option(panel=_TRAINING, text="Another model; default: the model's own float32.")]
Temperature = Annotated[float | None, _option(panel=_TRAINING, text="Of distillation.")]
Epochs = Annotated[int | None, _option(panel=_TRAINING, text="How long; default: 10.", least=1)]
Steps = Annotated[int | None, _option(panel=_TRAINING, text="The same in steps.", least=1)]
BatchSize = Annotated[int | None, _option(panel=_TRAINING, text="Rows of one step.", least=1)]
Optimizer = Annotated[Literal["adamw", "sgd"] | None, _option(panel=_TRAINING)]
LearningRate = Annotated[float | None, _option(panel=_TRAINING, text="The highest.")]
Schedule = Annotated[Literal["cosine", "constant"] | None, _option(panel=_TRAINING)]
Scales = Annotated[Literal["fixed", "observed", "learned"] | None, _option(panel=_TRAINING)]
Flip = Annotated[bool | None, _option("--flip", panel=_TRAINING, text="Turn half of the images left to right.")]
Crop = Annotated[int | None, _option(panel=_TRAINING, text="Shift images by up to so many pixels.", least=0)]
HeldOut = Annotated[float | None, _option(panel=_TRAINING, text="Share of the rows that choose the best step.")]
Patience = Annotated[int | None, _option(panel=_TRAINING, text="Looks without a better one that end it.", least=1)]
TrainingProcesses = Annotated[int | None, _option("--processes", panel=_TRAINING, text="That train together.", least=1)]
Compression = Annotated[
    Literal["none", "fp16", "powersgd", "int8"] | None,
    _option(panel=_TRAINING, text="Of the gradients between processes."),
]


def recipe_options(*, auto: bool, bits: int | None, **fields_given: object) -> dict[str, object]:
    """Return the options that were given, under the names of recipe fields, a budget's below `budget`.

    Raises:
        RecipeInvalid: `--auto` and another technique.
    """
    given = {name: value for name, value in fields_given.items() if value is not None}
    budget = {name: given.pop(name) for name in sorted(BUDGET_FIELDS & set(given))}
    if auto and given.setdefault("technique", "auto") != "auto":
        raise RecipeInvalid(f"--auto and --technique {given['technique']} contradict each other: leave one out.")
    if budget:
        given["budget"] = budget
    if bits is not None:
        given["bits"] = bits
    return given


def technique_for(training: object) -> str:
    """Return the technique to take where nothing names one: rows that train ask for training."""
    return "ptq_static" if training is None else "qat"


def make_recipe(file: Path | None, options: Mapping[str, Any], *, default: str = "ptq_static") -> Recipe:
    """Build a recipe; an option that is not None wins over the file.

    Args:
        default: the technique where nothing tells which.

    Raises:
        RecipeInvalid: the technique is unknown, lacks a field that was given, or a value does not fit.
    """
    given = {name: value for name, value in options.items() if value is not None}
    read = _read(file) if file else {}
    wanted = {**read, **given}
    if isinstance(given.get("budget"), dict) and isinstance(read.get("budget"), dict):
        wanted["budget"] = {**read["budget"], **given["budget"]}
    technique = wanted.setdefault("technique", "auto" if "budget" in wanted else default)
    if technique not in TECHNIQUES:
        raise RecipeInvalid(f"Technique {technique!r} is unknown: take one of {', '.join(TECHNIQUES)}.")
    if issubclass(TECHNIQUES[technique], StaticQuantization) and "bits" in given:
        wanted["weight_bits"] = wanted.pop("bits")
    kind = TECHNIQUES[technique]
    _check_known(wanted, kind, of=f"Technique {technique}")
    if isinstance(wanted.get("budget"), dict):
        _check_known(wanted["budget"], Budget, of="The budget")
    return _validated(kind, wanted)


def _check_known(wanted: Mapping[str, Any], kind: type[Recipe | Budget], *, of: str) -> None:
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise RecipeInvalid(f"{of} has no {', '.join(unknown)}: leave it out, or take {', '.join(known)}.")


def _read(file: Path) -> dict[str, Any]:
    try:
        recipe = json.loads(file.read_bytes())
    except ValueError as error:
        raise RecipeInvalid(f"{file} is not JSON ({error}): write a recipe as one JSON object.") from error
    if not isinstance(recipe, dict):
        raise RecipeInvalid(f"{file} holds no JSON object: write a recipe as one.")
    return recipe


def _validated(kind: type[Recipe], wanted: Mapping[str, Any]) -> Recipe:
    try:
        return TypeAdapter(kind).validate_python(wanted)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecipeInvalid(f"Recipe field {where} is {first['input']!r}: {first['msg']}.") from error
