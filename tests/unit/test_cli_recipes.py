"""Recipes from options and files."""

from pathlib import Path

import pytest

from app.client.commands.recipes import make_recipe
from app.domain.errors import RecipeInvalid
from app.domain.recipes import Cast, PtqStatic


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.json"
    path.write_text(text)
    return path


def test_no_option_at_all_is_the_default_recipe() -> None:
    assert make_recipe(None, {"technique": None, "seed": None}) == PtqStatic()


def test_options_set_fields() -> None:
    options = {"bias_correction": "full", "float_layers": ("conv1",)}
    assert make_recipe(None, options) == PtqStatic(bias_correction="full", float_layers=("conv1",))


def test_an_option_wins_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, '{"technique": "ptq_static", "seed": 1, "calibration_rows": 20}')
    assert make_recipe(file, {"seed": 2}) == PtqStatic(seed=2, calibration_rows=20)


def test_the_technique_chooses_the_record() -> None:
    assert make_recipe(None, {"technique": "cast"}) == Cast()


def test_a_field_of_another_technique_is_refused() -> None:
    with pytest.raises(RecipeInvalid, match="cast has no seed"):
        make_recipe(None, {"technique": "cast", "seed": 1})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"technique": "magic"}', "magic"),
        ('{"calibration_rows": "many"}', "calibration_rows"),
        ('{"bias_correction": "some"}', "bias_correction"),
        ("[1]", "no JSON object"),
        ("{", "not JSON"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(RecipeInvalid, match=reason):
        make_recipe(written(tmp_path, text), {})


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(RecipeInvalid, match="calibration_rows"):
        make_recipe(None, {"calibration_rows": 0})
