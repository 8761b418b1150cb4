"""Which layers a mixed-precision candidate keeps in float."""

import pytest

from app.domain.recipes import PtqStatic
from workers.jobs.search.mixed import Layers, mixed, power

BASE = PtqStatic(fallback="keep")
LAYERS = Layers(
    noise={"first": 0.6, "middle": 0.1, "last": 0.3},
    float32={"first": 50.0, "middle": 10.0, "last": 25.0},
    bfloat16={"first": 20.0, "middle": 4.0, "last": 10.0},
    whole=1000.0,
)


def test_twenty_decibels_are_a_hundredth_of_the_power() -> None:
    assert power(20.0) == pytest.approx(0.01, rel=1e-12)
    assert power(None) == 0.0


def test_each_candidate_is_the_best_set_for_its_time() -> None:
    recipes = mixed(BASE, LAYERS, drop=0.0, max_drop=0.01)
    kept = {(recipe.float_precision, recipe.float_layers) for recipe in recipes}
    # 3 % of 1000 microseconds buy "last" in float32, 8 % "first" and "last"; in bfloat16 3 % buy both.
    assert kept == {
        ("float32", ("last",)),
        ("float32", ("first", "last")),
        ("bfloat16", ("first", "last")),
    }


def test_a_base_that_misses_the_budget_gets_candidates_that_should_not() -> None:
    layers = Layers(noise=LAYERS.noise, float32=dict.fromkeys(LAYERS.noise, 500.0), bfloat16={}, whole=1000.0)
    recipes = mixed(BASE, layers, drop=0.02, max_drop=0.01)
    # half of a quarter of the noise may stay: 0.25 of 1.0, so all but "middle" goes to float
    assert [recipe.float_layers for recipe in recipes] == [("first", "last")]


def test_layers_the_base_keeps_in_float_stay_there() -> None:
    (first, *_) = mixed(PtqStatic(float_layers=("stem",)), LAYERS, drop=0.0, max_drop=0.01)
    assert first.float_layers[0] == "stem"


def test_no_candidate_keeps_every_layer_in_float() -> None:
    free = Layers(noise=LAYERS.noise, float32=dict.fromkeys(LAYERS.noise, 0.0), bfloat16={}, whole=1000.0)
    assert mixed(BASE, free, drop=0.0, max_drop=0.01) == []
