"""Which recipes a search tries, in what order."""

from dataclasses import replace

from app.domain.evidence import Interval
from app.domain.recipes import Auto, Budget, Cast, PtqStatic, Single, WeightOnly
from app.domain.reports import Kernels, Layer
from app.domain.search import Trial
from workers.jobs.search.candidates import (
    Profile,
    key_of,
    late,
    learned,
    narrow,
    opening,
    refinement,
    seconds_factor,
    trained,
)

CONVOLUTIONAL = Profile(convolutions=0.9, products=0.02, recurrent=0.0, torch_export=False)
TRANSFORMER = Profile(convolutions=0.0, products=0.8, recurrent=0.0, torch_export=False)
REQUEST = Auto(calibration_rows=100, seed=3)


def tried(recipe: Single, *, noise: float, speedup: float = 2.0, fallbacks: tuple[str, ...] = ()) -> Trial:
    return Trial(
        key=key_of(recipe),
        recipe=recipe,
        speedup=speedup,
        drop=Interval(value=0, low=-0.01, high=0.01),
        noise=noise,
        fallbacks=fallbacks,
    )


def techniques(recipes: list[Single]) -> set[str]:
    return {recipe.technique for recipe in recipes}


def test_bfloat16_is_tried_first_and_every_toolchain_at_its_default() -> None:
    profile = replace(CONVOLUTIONAL, torch_export=True)
    recipes = [*opening(profile, REQUEST), *late(profile, REQUEST)]
    assert recipes[0] == Cast()
    assert {recipe.toolchain for recipe in recipes if isinstance(recipe, PtqStatic)} == {"nncf", "ort", "torchao"}


def test_torchao_is_left_out_where_there_is_no_pt2() -> None:
    assert late(CONVOLUTIONAL, REQUEST) == []


def test_dynamic_and_weight_only_are_for_models_that_multiply_matrices() -> None:
    assert techniques(opening(TRANSFORMER, REQUEST)) == {"cast", "ptq_static", "ptq_dynamic", "weight_only"}
    assert techniques(opening(CONVOLUTIONAL, REQUEST)) == {"cast", "ptq_static"}


def test_every_static_candidate_takes_the_requests_rows_and_may_fall_back() -> None:
    static = [recipe for recipe in opening(CONVOLUTIONAL, REQUEST) if isinstance(recipe, PtqStatic)]
    assert {(recipe.calibration_rows, recipe.seed, recipe.fallback) for recipe in static} == {(100, 3, "keep")}


def test_a_setting_that_wins_is_kept_and_one_that_does_not_is_dropped() -> None:
    base = PtqStatic(fallback="keep")
    trials = {key_of(base): tried(base, noise=0.2)}
    _, first = refinement(CONVOLUTIONAL, trials, base=base)
    assert first is not None
    won = trials | {key_of(first): tried(first, noise=0.1)}
    lost = trials | {key_of(first): tried(first, noise=0.3)}
    assert refinement(CONVOLUTIONAL, won, base=base)[0] == first
    assert refinement(CONVOLUTIONAL, lost, base=base)[0] == base


def test_the_settings_come_to_an_end() -> None:
    base = PtqStatic(fallback="keep")
    trials = {key_of(base): tried(base, noise=0.2)}
    for _ in range(20):
        _, recipe = refinement(TRANSFORMER, trials, base=base)
        if recipe is None:
            return
        assert key_of(recipe) not in trials
        trials[key_of(recipe)] = tried(recipe, noise=0.2)
    raise AssertionError("it goes on for ever")


def test_layers_that_fell_back_are_named_in_the_next_candidate() -> None:
    base = PtqStatic(fallback="keep")
    trials = {key_of(base): tried(base, noise=0.2, fallbacks=("conv1", "fc"))}
    _, recipe = refinement(CONVOLUTIONAL, trials, base=base)
    assert recipe is not None
    assert recipe.float_layers == ("conv1", "fc")


def test_a_layer_whose_name_no_recipe_takes_ends_no_search() -> None:
    base = PtqStatic(fallback="keep")
    trials = {key_of(base): tried(base, noise=0.2, fallbacks=("n" * 201,))}
    _, recipe = refinement(CONVOLUTIONAL, trials, base=base)
    assert recipe is not None
    assert recipe.float_layers == ()


def test_a_toolchain_is_not_asked_for_settings_it_has_not() -> None:
    base = PtqStatic(toolchain="torchao", fallback="keep")
    trials = {key_of(base): tried(base, noise=0.2)}
    while (recipe := refinement(CONVOLUTIONAL, trials, base=base)[1]) is not None:
        trials[key_of(recipe)] = tried(recipe, noise=0.3)
    assert all(trial.recipe.bias_correction == "none" for trial in trials.values())  # type: ignore[union-attr]


def test_the_key_tells_recipes_apart_and_is_the_same_each_time() -> None:
    assert key_of(PtqStatic()) == key_of(PtqStatic())
    assert key_of(PtqStatic()) != key_of(PtqStatic(seed=1))
    assert len(key_of(PtqStatic())) == 16


def test_four_bits_are_for_what_the_model_is_made_of() -> None:
    assert all(recipe.technique == "weight_only" for recipe in narrow(REQUEST, TRANSFORMER))
    assert narrow(REQUEST, replace(TRANSFORMER, products=0.0)) == []


def test_what_learns_its_weights_says_the_rows_it_gets() -> None:
    learning = [recipe for recipe in narrow(REQUEST, TRANSFORMER) if recipe.needs_calibration]
    assert [(recipe.calibration_rows, recipe.seed) for recipe in learning if isinstance(recipe, WeightOnly)] == [
        (100, 3)
    ]


def test_the_profile_is_read_in_shares_of_the_whole_time() -> None:
    def layer(kind: str, microseconds: float) -> Layer:
        return Layer(name=kind, kind=kind, precision="f32", implementation="", microseconds=microseconds)

    layers = (layer("Convolution", 60), layer("FullyConnected", 30), layer("Reorder", 10))
    kernels = Kernels(layers=layers, int8_layers=0, float_layers=2, int8_share=0)
    profile = Profile.of(kernels, torch_export=False)
    assert (profile.convolutions, profile.products, profile.recurrent) == (0.6, 0.3, 0.0)


def test_the_best_static_recipe_is_tried_at_last_with_its_rounding_learned() -> None:
    best, other = PtqStatic(observer="mse", fallback="keep"), PtqStatic(toolchain="ort", fallback="keep")
    torchao = PtqStatic(toolchain="torchao", fallback="keep")
    trials = [tried(other, noise=0.2), tried(best, noise=0.1), tried(torchao, noise=0.01), tried(Cast(), noise=0.0)]
    recipe = learned(trials)
    assert recipe == replace(best, rounding="adaround")
    assert seconds_factor(recipe) > seconds_factor(torchao)
    assert learned([*trials, tried(recipe, noise=0.05)]) == recipe


def test_there_is_no_rounding_to_learn_where_nothing_static_could_be_made() -> None:
    failed = Trial(key=key_of(PtqStatic()), recipe=PtqStatic(), failure="It could not be made.")
    assert learned([failed, tried(Cast(), noise=0.0)]) is None


def missing(recipe: Single, *, drop: float) -> Trial:
    return replace(tried(recipe, noise=0.1), drop=Interval(value=drop, low=drop - 0.01, high=drop + 0.01))


def test_the_best_static_recipe_is_trained_where_it_does_not_keep_the_budget_safely() -> None:
    base = PtqStatic(toolchain="ort", calibration_rows=100, seed=3, fallback="keep")
    recipe = trained([missing(base, drop=REQUEST.budget.max_drop)], REQUEST, rows=80)
    assert recipe is not None
    assert (recipe.starts, recipe.loss, recipe.batch_size) == ((base,), "distillation", 10)


def test_what_keeps_the_budget_safely_is_not_trained_nor_is_anything_without_a_static_trial() -> None:
    safe = replace(REQUEST, budget=Budget(max_drop=0.05))
    assert trained([missing(PtqStatic(), drop=0.01)], safe, rows=80) is None
    assert trained([tried(Cast(), noise=0.1)], REQUEST, rows=80) is None


def test_a_batch_fits_into_few_rows() -> None:
    recipe = trained([missing(PtqStatic(), drop=0.5)], REQUEST, rows=5)
    assert recipe is not None
    assert recipe.batch_size == 1
