"""The three questions every user asks about a variant, answered from its report alone, with what to try next."""

from collections.abc import Iterable

from app.domain.evidence import Diagnosis, LayerReceipt, MetricScore
from app.domain.metrics import METRICS
from app.domain.recipes import PtqDynamic, StaticQuantization, WeightOnly
from app.domain.recipes.static import WIDE
from app.domain.reports import Latency, Report

MOST_OF_IT = 0.9
"""Share of the steps from which the best one is late."""

SHOWN = 3
"""How many layers, findings or classes a sentence names."""

FEW_ROWS = 100
WORTHWHILE_SPEEDUP = 1.3
"""Below this, a reader asks why it is not faster."""

CONVERSIONS_HURT = 0.2
INT8_SHARE_IS_LOW = 0.5
SMALL_MODEL_MS = 0.2
"""Below this median time, the engine's fixed cost per call is a good part of it."""

_SENSITIVE_DB = 10.0
"""A layer this far below the median SQNR of all layers stands out."""


def diagnose(report: Report) -> tuple[Diagnosis, ...]:
    """Answer the three questions; nothing for `float32`, which was not quantized.

    Every sentence follows from a number in the report; what the report does not hold is not guessed.
    """
    if report.recipe is None:
        return ()
    return (_accuracy(report), _speed(report), _conversion(report))


def main_metric(report: Report) -> MetricScore | None:
    """Return the metric a reader cares for most: the budget's, else the labels', else closeness to float32."""
    wanted = report.search.metric if report.search else None
    by_name = {metric.name: metric for metric in report.metrics}
    if wanted in by_name:
        return by_name[wanted]
    labelled = [metric for metric in report.metrics if METRICS[metric.name].labels != "none"]
    return next(iter(labelled or report.metrics), None)


def _accuracy(report: Report) -> Diagnosis:
    metric = main_metric(report)
    answer: list[str] = []
    if metric is None:
        answer.append("No metric applies to these rows and outputs, so nothing can be said about accuracy.")
    elif metric.drop.low <= 0 and METRICS[metric.name].labels != "none":
        answer.append(f"It did not, as far as {metric.rows} rows can tell: {_drop(metric)}.")
    else:
        answer.append(f"{_drop(metric).capitalize()}, on {metric.rows} rows.")
    answer += [*_sensitive(report), *_doubts(report), *_worst_class(report)]
    return Diagnosis(question="Why did accuracy drop?", answer=tuple(answer), next=tuple(_for_accuracy(report)))


def _drop(metric: MetricScore) -> str:
    unit = METRICS[metric.name].unit
    points = unit == "share"
    scale, word = (100, "points") if points else (1, unit)
    low, value, high = (scale * number for number in (metric.drop.low, metric.drop.value, metric.drop.high))
    way = "worse" if value >= 0 else "better"
    return (
        f"{metric.name} is {abs(value):.3g} {word} {way} than float32's (interval of the drop {low:.3g} to {high:.3g})"
    )


def _sensitive(report: Report) -> list[str]:
    layers = [(layer.sqnr_db, layer.name) for layer in report.sensitivity if layer.sqnr_db is not None]
    if len(layers) < SHOWN:
        return []
    layers.sort()
    median = layers[len(layers) // 2][0]
    worst = [f"{name} ({sqnr:.0f} dB)" for sqnr, name in layers[:SHOWN] if sqnr < median - _SENSITIVE_DB]
    if not worst:
        return [f"No layer stands out: quantized alone, the worst is {layers[0][1]} with {layers[0][0]:.0f} dB."]
    return [f"Quantized alone, {_listed(worst)} add most noise; the median layer has {median:.0f} dB."]


def _doubts(report: Report) -> list[str]:
    return [finding.message for finding in report.findings if finding.severity == "warning"][:SHOWN]


def _worst_class(report: Report) -> list[str]:
    classes = report.accuracy.classes if report.accuracy else ()
    losses = [(each.variant - each.float32, each) for each in classes]
    if not losses:
        return []
    loss, worst = min(losses, key=lambda pair: (pair[0], -pair[1].rows))
    if loss >= 0:
        return []
    return [f"Class {worst.name!r} lost most: {-100 * loss:.1f} points on {worst.rows} rows."]


def _for_accuracy(report: Report) -> Iterable[str]:
    recipe = report.recipe
    if any(finding.code.startswith("normalisation") for finding in report.findings):
        yield "Mend the preprocessing first: every other number depends on it."
    if isinstance(recipe, StaticQuantization):
        yield from _for_static(report, recipe)
    if isinstance(recipe, WeightOnly) and recipe.bits != WIDE:
        yield "Take a smaller group_size, awq with scale_estimation, or 8 bits."
    if isinstance(recipe, PtqDynamic) and recipe.toolchain == "ort":
        yield "Take toolchain nncf, whose scales follow each row's own groups of activations."
    if report.search is None:
        yield "Let technique auto search under a budget."


def _for_static(report: Report, recipe: StaticQuantization) -> Iterable[str]:
    names = [layer.name for layer in report.sensitivity[:SHOWN] if layer.name not in recipe.float_layers]
    if names:
        yield f"Name {_listed(names)} in float_layers."
    if recipe.weight_bits != WIDE and recipe.rounding == "nearest" and report.training is None:
        yield "Learn the rounding: rounding brecq or adaround."
    if report.training is None:
        yield "Train it: technique qat, with labels or without."
    elif report.training.outcome.best_step >= MOST_OF_IT * report.training.outcome.steps:
        yield "Train longer: the best step was among the last."
    if report.calibration and report.calibration.rows < FEW_ROWS:
        yield f"Calibrate with more than {report.calibration.rows} rows: 300 are a good number."
    if recipe.observer == "min_max":
        yield "Try observer mse or percentile, which give up rare extremes for finer steps."


def _speed(report: Report) -> Diagnosis:
    mine, reference = report.latency.get(report.variant), report.latency.get("float32")
    if mine is None or reference is None:
        return Diagnosis(question="Why is it not faster?", answer=("Its latency was not measured.",), next=())
    first = f"It takes {mine.p50_ms:.3g} ms a row against {reference.p50_ms:.3g} ms in float32: {_times(mine)}."
    answer = [first, *_slow_parts(report)]
    if reference.p50_ms < SMALL_MODEL_MS:
        answer.append("So small a model spends much of a call on the engine's fixed cost, which int8 does not lessen.")
    return Diagnosis(question="Why is it not faster?", answer=tuple(answer), next=tuple(_for_speed(report, mine)))


def _times(latency: Latency) -> str:
    if latency.speedup >= 1:
        return f"{latency.speedup:.2f} times as fast"
    return f"{1 / latency.speedup:.2f} times slower"


def _slow_parts(report: Report) -> Iterable[str]:
    receipt, kernels = report.receipt, report.kernels.get(report.variant)
    if receipt and receipt.fallbacks:
        yield f"The engine ran {len(receipt.fallbacks)} quantized layers in float: {_listed(receipt.fallbacks)}."
    if kernels and report.recipe and _expects_int8(report) and kernels.int8_share < INT8_SHARE_IS_LOW:
        yield f"Int8 layers are only {100 * kernels.int8_share:.0f} % of its time; {_dearest_float(receipt_of(report))}"
    if receipt and receipt.conversion_share > CONVERSIONS_HURT:
        yield (
            f"Converting and reordering takes {100 * receipt.conversion_share:.0f} % of its time, most of it in "
            f"{_listed(receipt.conversions)}."
        )
    if isinstance(report.recipe, WeightOnly):
        yield "Weight-only quantization computes in float: it saves memory and bandwidth, not arithmetic."


def receipt_of(report: Report) -> tuple[LayerReceipt, ...]:
    """Return the receipt's layers, none where there is no receipt."""
    return report.receipt.layers if report.receipt else ()


def _dearest_float(layers: Iterable[LayerReceipt]) -> str:
    floats = [(each.variant.microseconds, each.name) for each in layers if each.variant and not each.quantized]
    if not floats:
        return "the rest moves and reshapes data."
    floats.sort(reverse=True)
    return f"of the layers left in float {_listed(name for _, name in floats)} take most."


def _for_speed(report: Report, mine: Latency) -> Iterable[str]:
    bfloat16 = report.latency.get("bfloat16")
    if bfloat16 and report.variant != "bfloat16" and bfloat16.p50_ms < mine.p50_ms:
        yield f"Serve bfloat16: it is {bfloat16.speedup:.2f} times as fast as float32 and needs no calibration."
    if report.receipt and report.receipt.fallbacks:
        yield "Name the layers that fell back in float_layers, which saves conversions, or take another toolchain."
    if isinstance(report.recipe, StaticQuantization) and report.recipe.weights == "asymmetric":
        yield "Set weights to symmetric: OpenVINO has no int8 convolution with a weight zero point."
    if isinstance(report.recipe, WeightOnly) and mine.speedup < WORTHWHILE_SPEEDUP:
        yield "Take ptq_static or ptq_dynamic, which compute in int8."
    if _stays_float(report) and bfloat16:
        yield "Set float_precision to bfloat16, so that what is left in float runs in 16 bits."


def _stays_float(report: Report) -> bool:
    if getattr(report.recipe, "float_precision", "bfloat16") == "bfloat16":  # or it has no such choice
        return False
    return any(not layer.quantized for layer in receipt_of(report))


def _expects_int8(report: Report) -> bool:
    return report.recipe is not None and report.recipe.expects_int8


def _conversion(report: Report) -> Diagnosis:
    layers = receipt_of(report)
    left = [layer for layer in layers if not layer.quantized]
    answer: list[str] = []
    if not _expects_int8(report):
        answer.append("This recipe leaves the arithmetic in float on purpose.")
    elif not layers:
        answer.append("The report has no layers to tell by.")
    elif not left:
        answer.append(f"It did: all {len(layers)} layers that multiply and add are quantized.")
    else:
        answer.append(f"{len(left)} of {len(layers)} layers stayed in float: {_by_kind(left)}.")
    named: tuple[str, ...] = getattr(report.recipe, "float_layers", ())
    if named:
        answer.append(f"The recipe left {_listed(named)} in float.")
    answer += report.notes[:SHOWN]
    steps = (
        ["Try another toolchain, which may know these layers."] if left and _expects_int8(report) and not named else []
    )
    return Diagnosis(question="Why did it not convert?", answer=tuple(answer), next=tuple(steps))


def _by_kind(layers: Iterable[LayerReceipt]) -> str:
    kinds: dict[str, list[str]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer.name)
    return "; ".join(f"{kind} {_listed(names)}" for kind, names in kinds.items())


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = len(every) - SHOWN
    return ", ".join(every[:SHOWN]) + (f" and {more} more" if more > 0 else "")
