"""Recipes on the command line: from options, from a JSON file, or both, where an option wins."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import TypeAdapter, ValidationError

from app.domain.errors import RecipeInvalid
from app.domain.recipes import TECHNIQUES, Recipe

Symmetry = Literal["symmetric", "asymmetric"]
Granularity = Literal["per_tensor", "per_channel"]
_PANEL = "Recipe"

Technique = Annotated[
    Literal["ptq_static", "ptq_dynamic", "weight_only", "cast", "auto"] | None,
    typer.Option(rich_help_panel=_PANEL, help="What to do."),
]
Activations = Annotated[Symmetry | None, typer.Option(rich_help_panel=_PANEL)]
Weights = Annotated[Symmetry | None, typer.Option(rich_help_panel=_PANEL)]
ActivationGranularity = Annotated[Granularity | None, typer.Option(rich_help_panel=_PANEL)]
WeightGranularity = Annotated[Granularity | None, typer.Option(rich_help_panel=_PANEL)]
CalibrationRows = Annotated[int | None, typer.Option(min=1, rich_help_panel=_PANEL, help="Rows that set the ranges.")]
Seed = Annotated[int | None, typer.Option(min=0, rich_help_panel=_PANEL, help="Picks which rows.")]
BiasCorrection = Annotated[Literal["none", "fast", "full"] | None, typer.Option(rich_help_panel=_PANEL)]
FloatLayers = Annotated[
    list[str] | None,
    typer.Option("--float-layer", rich_help_panel=_PANEL, help="A graph node that stays in float; may be repeated."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", exists=True, dir_okay=False, rich_help_panel=_PANEL, help="JSON file with a recipe."),
]


def make_recipe(file: Path | None, options: Mapping[str, Any]) -> Recipe:
    """Build a recipe; an option that is not None wins over the file.

    Raises:
        RecipeInvalid: the technique is unknown, lacks a field that was given, or a value does not fit.
    """
    given = {name: value for name, value in options.items() if value is not None}
    wanted = {**(_read(file) if file else {}), **given}
    technique = wanted.get("technique", "ptq_static")
    if technique not in TECHNIQUES:
        raise RecipeInvalid(f"Technique {technique!r} is unknown: take one of {', '.join(TECHNIQUES)}.")
    kind = TECHNIQUES[technique]
    unknown = sorted(set(wanted) - {field.name for field in fields(kind)})
    if unknown:
        raise RecipeInvalid(f"Technique {technique} has no {', '.join(unknown)}: leave it out.")
    return _validated(kind, wanted)


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
