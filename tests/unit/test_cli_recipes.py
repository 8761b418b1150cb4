"""Recipes from options and files."""

from pathlib import Path
from typing import Any

import pytest

from app.client.commands.recipes import make_recipe, recipe_options
from app.domain.errors import RecipeInvalid
from app.domain.recipes import Auto, Budget, Cast, PtqDynamic, PtqStatic, Recipe, WeightOnly


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
    with pytest.raises(RecipeInvalid, match="cast has no seed: leave it out, or take technique, toolchain, precision"):
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


@pytest.mark.parametrize(
    ("given", "recipe"),
    [
        ({"auto": True}, Auto()),
        ({"max_drop": 0.005}, Auto(budget=Budget(max_drop=0.005))),
        ({"metric": "top1", "time_limit_seconds": 60}, Auto(budget=Budget(metric="top1"), time_limit_seconds=60)),
        ({"max_latency_ms": 2.0, "max_size_bytes": 9}, Auto(budget=Budget(max_latency_ms=2.0, max_size_bytes=9))),
        ({"bits": 4, "rounding": "adaround"}, PtqStatic(weight_bits=4, rounding="adaround")),
        ({"technique": "weight_only", "bits": 4, "group_size": 64}, WeightOnly(bits=4, group_size=64)),
        ({"technique": "ptq_dynamic", "toolchain": "ort"}, PtqDynamic(toolchain="ort")),
        ({"observer": "mse", "smooth_quant": 0.5}, PtqStatic(observer="mse", smooth_quant=0.5)),
    ],
    ids=str,
)
def test_options_reach_every_technique(given: dict[str, Any], recipe: Recipe) -> None:
    assert make_recipe(None, recipe_options(**{"auto": False, "bits": None, **given})) == recipe


def test_a_budget_option_wins_over_the_file_s_and_the_others_stay(tmp_path: Path) -> None:
    file = written(tmp_path, '{"technique": "auto", "budget": {"metric": "top1", "max_drop": 0.1}}')
    options = recipe_options(auto=False, bits=None, max_drop=0.01)
    assert make_recipe(file, options) == Auto(budget=Budget(metric="top1", max_drop=0.01))


def test_auto_and_another_technique_contradict_each_other() -> None:
    with pytest.raises(RecipeInvalid, match="--auto and --technique cast"):
        recipe_options(auto=True, bits=None, technique="cast")


def test_a_budget_does_not_go_with_another_technique() -> None:
    with pytest.raises(RecipeInvalid, match="cast has no budget"):
        make_recipe(None, recipe_options(auto=False, bits=None, technique="cast", max_drop=0.1))


def test_an_unknown_field_of_a_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="budget has no drop: leave it out, or take metric, max_drop"):
        make_recipe(written(tmp_path, '{"technique": "auto", "budget": {"drop": 1}}'), {})


def test_a_bit_width_that_nothing_has_is_refused() -> None:
    with pytest.raises(RecipeInvalid, match="weight_bits"):
        make_recipe(None, recipe_options(auto=False, bits=3))
