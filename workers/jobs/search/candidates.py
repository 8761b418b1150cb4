"""Which recipes to try on a model, in what order: pure functions of what it is made of and of the trials so far.

So an attempt that takes over another's trials goes on exactly where that one was.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from app.domain.errors import RecipeInvalid
from app.domain.recipes import Auto, Cast, PtqDynamic, PtqStatic, Qat, Single, StaticQuantization, WeightOnly
from app.domain.reports import Kernels
from app.domain.search import Trial
from workers.jobs.search.choice import measured, pick

LEAST_SHARE = 0.1
"""Share of float32's time that a kind of layer must take for the recipes made for it to be tried."""

DEAR, DEARER = 4.0, 6.0
"""How many times as long as another trial one from the `.pt2`, and one with learned rounding, is taken to last."""

TRAINING_STEPS = 300
"""A few dozen times through a few hundred rows: what recovers, recovers early."""
_MOST_BATCH, _BATCHES = 32, 8

_CONVOLUTIONS = ("Convolution", "Deconvolution")
_PRODUCTS = ("FullyConnected", "GatherMatMul", "MatMul", "MHA", "ScaledDotProductAttention")
_RECURRENT = ("RNNCell", "RNNSeq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Where a model's float32 time goes, as shares of it, and what its upload allows.

    Attributes:
        torch_export: whether toolchains that start from the `.pt2` can be tried.
    """

    convolutions: float
    products: float
    recurrent: float
    torch_export: bool

    @classmethod
    def of(cls, kernels: Kernels, *, torch_export: bool) -> "Profile":
        """Read it from float32's runtime graph."""
        total = sum(layer.microseconds for layer in kernels.layers) or 1.0

        def share(kinds: Sequence[str]) -> float:
            return sum(layer.microseconds for layer in kernels.layers if layer.kind in kinds) / total

        return cls(
            convolutions=share(_CONVOLUTIONS),
            products=share(_PRODUCTS),
            recurrent=share(_RECURRENT),
            torch_export=torch_export,
        )


def key_of(recipe: Single) -> str:
    """Return the 16 hex digits that name a recipe's trial."""
    return hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:16]


def opening(profile: Profile, request: Auto) -> list[Single]:
    """Return what is tried whatever the trials say: bfloat16 and the toolchains' defaults, cheapest first."""
    static = _static(request, toolchain="nncf")
    found: list[Single] = [Cast(), _static(request, toolchain="ort"), static, replace(static, activations="asymmetric")]
    if profile.products + profile.recurrent >= LEAST_SHARE:
        found += [PtqDynamic(), WeightOnly()]
    return found


def late(profile: Profile, request: Auto) -> list[Single]:
    """Return the dear default of a toolchain that starts from the `.pt2`: once the best of the others is refined."""
    return [_static(request, toolchain="torchao")] if profile.torch_export else []


def learned(trials: Iterable[Trial]) -> PtqStatic | None:
    """Return the best static recipe of all with its rounding learned, which costs time now and none at run time.

    None where nothing static was measured; torchao cannot learn it.
    """
    plain = [trial for trial in measured(trials) if _rounds(trial.recipe)]
    recipe = pick(plain).recipe if plain else None
    return replace(recipe, rounding="adaround") if isinstance(recipe, PtqStatic) else None


def trained(trials: Iterable[Trial], request: Auto, *, rows: int) -> Qat | None:
    """Return the best static recipe of all, trained by self-distillation on the rows that calibrate.

    None where nothing static was measured, or what was keeps the budget safely: its drop's whole interval does.

    Args:
        rows: how many calibrate.
    """
    static = [trial for trial in measured(trials) if isinstance(trial.recipe, PtqStatic)]
    if not static:
        return None
    best = pick(static)
    if best.drop is None or best.drop.high <= request.budget.max_drop:
        return None
    as_it_is = {each.name: getattr(best.recipe, each.name) for each in fields(PtqStatic) if each.name != "technique"}
    return Qat(**as_it_is, steps=TRAINING_STEPS, batch_size=max(1, min(_MOST_BATCH, rows // _BATCHES)))


def _rounds(recipe: Single) -> bool:
    return isinstance(recipe, PtqStatic) and recipe.toolchain != "torchao" and recipe.rounding == "nearest"


def refinement(profile: Profile, trials: Mapping[str, Trial], *, base: PtqStatic) -> tuple[PtqStatic, PtqStatic | None]:
    """Go through the settings one by one, keeping each that wins over the best so far.

    Returns:
        The best so far, and the next recipe to try; None when every setting has been tried.
    """
    for changes in _settings(profile):
        changed = _changed(base, changes, trials)
        if changed is None or changed == base:
            continue
        trial = trials.get(key_of(changed))
        if trial is None:
            return base, changed
        if trial.failure is None and _wins(trial, trials.get(key_of(base))):
            base = changed
    return base, None


def narrow(request: Auto, profile: Profile) -> list[Single]:
    """Return what stores weights in 4 bits, cheapest first: tried only where a size is asked for that 8 bits miss."""
    found: list[Single] = []
    learning: dict[str, Any] = {"calibration_rows": request.calibration_rows, "seed": request.seed}
    if profile.products + profile.recurrent >= LEAST_SHARE:
        found += [WeightOnly(bits=4), WeightOnly(bits=4, rounding="gptq", **learning)]
    if profile.convolutions >= LEAST_SHARE:
        found += [WeightOnly(bits=4, rounding="adaround", **learning)]
    return found


def seconds_factor(recipe: Single) -> float:
    """Return how many times as long as a plain one a trial of this recipe is taken to last, but for training."""
    if isinstance(recipe, (StaticQuantization, WeightOnly)) and recipe.rounding != "nearest":
        return DEARER
    return DEAR if recipe.toolchain == "torchao" else 1.0


def _settings(profile: Profile) -> Iterator[dict[str, Any]]:
    yield {"float_layers": "fallbacks"}
    yield {"bias_correction": "none"}
    if profile.products >= LEAST_SHARE:
        yield {"smooth_quant": 0.5}
    yield {"observer": "mse"}
    if profile.convolutions >= LEAST_SHARE:
        yield {"channel_equalization": True}
    yield {"observer": "percentile", "percentile": 99.99}
    yield {"bias_correction": "fast"}
    yield {"float_precision": "bfloat16"}


def _changed(base: PtqStatic, changes: dict[str, Any], trials: Mapping[str, Trial]) -> PtqStatic | None:
    """Return the recipe with one setting changed; None if no such recipe can be, or there is nothing to do."""
    if "float_layers" in changes:
        trial = trials.get(key_of(base))
        more = tuple(name for name in (trial.fallbacks if trial else ()) if name not in base.float_layers)
        if not more:
            return None
        changes = {"float_layers": (*base.float_layers, *more)}
    if "observer" in changes:
        changes = {"percentile": None, **changes}
    try:
        return replace(base, **changes)
    except RecipeInvalid:
        return None


def _wins(trial: Trial, base: Trial | None) -> bool:
    return base is None or not measured([base]) or pick([base, trial]) is trial


def _static(request: Auto, **fields: Any) -> PtqStatic:  # noqa: ANN401 - fields of the record, which checks them
    return PtqStatic(calibration_rows=request.calibration_rows, seed=request.seed, fallback="keep", **fields)
