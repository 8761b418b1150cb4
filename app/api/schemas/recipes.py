"""Recipes and preprocessings as a caller writes them: the domain's records, with unknown fields forbidden."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from app.api.schemas.strict import StrictModel
from app.api.validation import explain
from app.domain.errors import RecipeInvalid, RequestInvalid
from app.domain.preprocessing import ImagePreprocessing
from app.domain.recipes import TECHNIQUES, Budget, PtqStatic, Recipe


def _read_recipe(value: object, read: ValidatorFunctionWrapHandler) -> Recipe:
    try:
        recipe: Recipe = read(value)
    except ValidationError as error:
        raise RecipeInvalid(_recipe_sentence(value, error)) from error
    return recipe


def _recipe_sentence(value: object, error: ValidationError) -> str:
    technique = value.get("technique") if isinstance(value, dict) else None
    if not isinstance(technique, str) or technique not in TECHNIQUES:
        return f"The recipe's technique is {str(technique)[:80]!r}: take one of {', '.join(TECHNIQUES)}."
    errors: list[Any] = [{**found, "loc": found["loc"][1:]} for found in error.errors()]  # [0] is the technique
    return explain(errors, of=f"{technique} recipe", allowed=_allowed(TECHNIQUES[technique], errors))


def _allowed(technique: type[Recipe], errors: list[Any]) -> list[str]:
    """Return the fields there are where the first error lies: the recipe's, or its budget's."""
    inside = errors[0]["loc"][:-1] if errors else ()
    return [field.name for field in fields(Budget if inside == ("budget",) else technique)]


RecipeField = Annotated[Annotated[Recipe, Field(discriminator="technique")], WrapValidator(_read_recipe)]
"""A recipe inside a request. What is wrong with it is raised as RecipeInvalid."""

_JSON: TypeAdapter[Any] = TypeAdapter(Any)


class _Fields(StrictModel):
    """Form fields that are JSON; a stdlib record is strict only inside a strict model."""

    recipe: RecipeField = PtqStatic()
    preprocessing: ImagePreprocessing | None = None


def parse_recipe(text: str) -> Recipe:
    """Read a recipe from a form field.

    Raises:
        RecipeInvalid: it is not valid.
    """
    try:
        content = _JSON.validate_json(text)
    except ValidationError as error:
        raise RecipeInvalid(explain(error.errors(), of="recipe")) from error
    return _Fields(recipe=content).recipe


def parse_preprocessing(text: str) -> ImagePreprocessing:
    """Read a preprocessing from a form field or a query parameter.

    Raises:
        RequestInvalid: it is not valid.
    """
    allowed = [field.name for field in fields(ImagePreprocessing)]
    try:
        read = _Fields(preprocessing=_JSON.validate_json(text)).preprocessing
    except ValidationError as error:
        errors: list[Any] = [{**found, "loc": found["loc"][1:]} for found in error.errors()]
        raise RequestInvalid(explain(errors, of="preprocessing", allowed=allowed)) from error
    return read or ImagePreprocessing()
