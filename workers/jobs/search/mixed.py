"""Mixed precision: which layers a candidate keeps in float, by measured noise and measured time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from app.domain.evidence import LayerSensitivity
from app.domain.recipes import PtqStatic
from app.domain.recipes.limits import LONGEST_LAYER_NAME, MOST_NAMED_LAYERS
from app.domain.search import StoredTrial
from workers.jobs.search.knapsack import Item, fill, reach

SHARES = (0.03, 0.08)
"""How much slower a candidate may get, as shares of the base's time: the second uses up the window of `choice`."""

MARGINS = (0.5, 0.15)
"""For a base that misses the budget: how much of the drop that is allowed a candidate is made to keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What keeping each layer of a base in float costs and brings.

    Attributes:
        noise: by layer, what quantizing it adds to the outputs, as power over theirs.
        float32, bfloat16: by layer, microseconds that it takes longer in that precision than quantized.
        whole: microseconds of all of the base's layers.
    """

    noise: dict[str, float]
    float32: dict[str, float]
    bfloat16: dict[str, float]
    whole: float

    @classmethod
    def of(
        cls, base: StoredTrial, sensitivity: Sequence[LayerSensitivity], *, bfloat16: StoredTrial | None
    ) -> "Layers":
        """Join what was measured of the layers one by one with what each took in the base and in the cast."""
        noise = {layer.name: power(layer.sqnr_db) for layer in sensitivity if len(layer.name) <= LONGEST_LAYER_NAME}
        quantized = _microseconds(base, of="variant")
        return cls(
            noise=noise,
            float32=_longer(_microseconds(base, of="float32"), quantized),
            bfloat16=_longer(_in_step(bfloat16, base), quantized) if bfloat16 is not None else {},
            whole=base.microseconds,
        )

    def items(self, costs: dict[str, float]) -> list[Item]:
        """Return the layers as a knapsack's items; a layer whose time is not known stays out."""
        return [
            Item(name=name, value=value, cost=ceil(costs[name])) for name, value in self.noise.items() if name in costs
        ]


def power(sqnr_db: float | None) -> float:
    """Return the noise of a layer as power over that of the outputs; none for a layer that changed nothing."""
    return 0.0 if sqnr_db is None else 10 ** (-sqnr_db / 10)


def mixed(base: PtqStatic, layers: Layers, *, drop: float, max_drop: float) -> list[PtqStatic]:
    """Return the candidates that keep some layers of a base in float, the cheapest in time first.

    The layers' noise powers add up, since rounding errors of different layers are all but uncorrelated; the loss is
    taken to grow with their sum. Each candidate is the best set for its time, or the cheapest for its noise.
    """
    choices: list[tuple[frozenset[str], str]] = []
    in_float32, in_bfloat16 = layers.items(layers.float32), layers.items(layers.bfloat16)
    for share in SHARES:
        capacity = int(share * layers.whole)
        choices.append((fill(in_float32, capacity=capacity), "float32"))
        choices.append((fill(in_bfloat16, capacity=capacity), "bfloat16"))
    for margin in MARGINS if drop > max_drop else ():
        wanted = sum(layers.noise.values()) * (1 - margin * max_drop / drop)
        choices.append((reach(in_bfloat16, value=wanted) or frozenset(), "bfloat16"))
        choices.append((reach(in_float32, value=wanted) or frozenset(), "float32"))
    return _recipes(base, choices, all_of=len(layers.float32))


def _recipes(base: PtqStatic, choices: Sequence[tuple[frozenset[str], str]], *, all_of: int) -> list[PtqStatic]:
    found: list[PtqStatic] = []
    for names, precision in choices:
        named = (*base.float_layers, *sorted(names - set(base.float_layers)))
        if not names or len(names) >= all_of or len(named) > MOST_NAMED_LAYERS:
            continue  # the base itself, or no int8 at all
        recipe = replace(base, float_layers=named, float_precision=precision)  # type: ignore[arg-type]
        if recipe not in found:
            found.append(recipe)
    return found


def _microseconds(stored: StoredTrial, *, of: str) -> dict[str, float]:
    """Return the quantized layers' times in float32 or in the trial's form."""
    times: dict[str, float] = {}
    for layer in stored.receipt.layers if stored.receipt else ():
        run = layer.variant if of == "variant" else layer.float32
        if run is not None and layer.quantized:
            times[layer.name] = run.microseconds
    return times


def _in_step(cast: StoredTrial, base: StoredTrial) -> dict[str, float]:
    """Return the layers' times in bfloat16, scaled as the machine was when the base was measured."""
    mine = {layer.name: layer for layer in cast.receipt.layers} if cast.receipt else {}
    then = sum(layer.float32.microseconds for layer in mine.values() if layer.float32)
    now = sum(layer.float32.microseconds for layer in (base.receipt.layers if base.receipt else ()) if layer.float32)
    scale = now / then if then else 1.0
    return {name: scale * layer.variant.microseconds for name, layer in mine.items() if layer.variant}


def _longer(slow: dict[str, float], fast: dict[str, float]) -> dict[str, float]:
    return {name: slow[name] - time for name, time in fast.items() if name in slow}
