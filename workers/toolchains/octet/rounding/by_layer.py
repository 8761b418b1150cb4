"""Learning layer after layer: on inputs that the layers already rounded give, towards what the float layer gives."""

from collections.abc import Iterator, Sequence

import numpy as np

from workers.stage_records.common import RowSource
from workers.toolchains.octet.rounding.activations import activation_after
from workers.toolchains.octet.rounding.adaround import POSITIONS, Task, adaround
from workers.toolchains.octet.rounding.forms import Floats
from workers.toolchains.octet.rounding.gptq import MOST_POSITIONS, gptq, hessian, in_parts, inverse_factor, joined
from workers.toolchains.octet.rounding.layers import Layer, write_integers
from workers.toolchains.octet.rounding.memory import give_back
from workers.toolchains.octet.rounding.playback import Playback
from workers.toolchains.octet.rounding.samples import sample
from workers.toolchains.octet.rounding.soft import Effort
from workers.toolchains.octet.rounding.study import Study, until_read
from workers.toolchains.octet.rounding.threads import share_threads

MOST_STEPS, LEAST_STEPS = 1000, 250
"""Of one layer. At the rate of `Effort` 2,000 gave no smaller errors than 1,000; the paper takes 10,000 small ones."""

WORK = 4e11
"""Multiplications that all layers together may cost at most, unless that leaves fewer than `LEAST_STEPS`."""


def learn_gptq(study: Study, rows: RowSource) -> tuple[str, ...]:
    """Round every layer by GPTQ."""
    quantized, kept = study.play_quantized(rows), study.milestones()
    for number, layer in enumerate(study.layers):
        tell(study, number, layer)
        if layer.name in kept:
            quantized.advance(study.place(layer))
        _round_gptq(study, layer, quantized)
    quantized.close()
    return ()


def learn_adaround(study: Study, rows: RowSource) -> tuple[str, ...]:
    """Round every layer by AdaRound."""
    quantized, original = study.play_quantized(rows), study.play_original(rows)
    keep_targets(study, study.layers, original)
    kept = study.milestones()
    for number, layer in enumerate(study.layers):
        tell(study, number, layer)
        if layer.name in kept:
            quantized.advance(study.place(layer))
            original.advance(study.float_place(layer))
        round_adaround(study, layer, quantized, original)
    quantized.close()
    original.close()
    return ()


def keep_targets(study: Study, layers: Sequence[Layer], original: Playback) -> None:
    """Let the float graph keep every layer's output until it is that layer's turn, whatever order its nodes are in."""
    for layer, place in zip(layers, until_read([study.float_place(each) for each in layers]), strict=True):
        original.keep(study.float_output(layer), until=place + 1)


def round_adaround(study: Study, layer: Layer, quantized: Playback, original: Playback) -> None:
    """Learn one layer, and write its integers."""
    give_back()
    weight, target = study.weight(layer), study.float_output(layer)
    shape = layer.form.matrix(weight).shape
    given = quantized.values([layer.input], place=study.place(layer))
    wanted = original.values([target], place=study.float_place(layer) + 1)
    samples = sample(
        layer.form,
        ((x[layer.input], y[target]) for x, y in zip(given, wanted, strict=True)),
        count=quantized.batches,
        seed=study.seed,
        shape=shape,
    )
    task = Task(
        form=layer.form,
        weight=weight,
        grid=study.grid(layer),
        bias=study.bias(layer, shape=shape),
        activation=activation_after(target, study.original, study.known),
        samples=samples,
    )
    share_threads(POSITIONS * weight.size)
    effort = Effort(steps=steps_for(POSITIONS * weight.size, units=len(study.layers)))
    write_integers(layer, study.wiring, adaround(task, effort, seed=study.seed))


def steps_for(multiplications: int, *, units: int) -> int:
    """Return how many steps a layer gets whose output takes so many multiplications per step."""
    return int(np.clip(WORK / units / multiplications, LEAST_STEPS, MOST_STEPS))


def _round_gptq(study: Study, layer: Layer, quantized: Playback) -> None:
    give_back()
    weight, grid = study.weight(layer), study.grid(layer)
    share_threads(MOST_POSITIONS * weight.size)
    inputs = _inputs(study, layer, quantized)
    factors = [inverse_factor(h) for h in hessian(layer.form, inputs, count=quantized.batches, seed=study.seed)]
    groups = len(layer.form.matrix(weight))
    spread = (np.broadcast_to(each, weight.shape) for each in (weight, grid.scale, grid.zero_point))
    ours, scale, zero_point = (in_parts(layer.form.matrix(each)) for each in spread)
    learned = [
        gptq(ours[at], scale[at], zero_point[at], bounds=(grid.qmin, grid.qmax), factor=factor)
        for at, factor in enumerate(factors)
    ]
    integers = layer.form.weight(joined(np.stack(learned), groups=groups))
    write_integers(layer, study.wiring, np.ascontiguousarray(integers))


def _inputs(study: Study, layer: Layer, quantized: Playback) -> Iterator[tuple[Floats, tuple[int, ...]]]:
    for arrays in quantized.values([layer.input, layer.output], place=study.place(layer) + 1):
        yield arrays[layer.input], arrays[layer.output].shape


def tell(study: Study, number: int, layer: Layer) -> None:
    """Report that it is a layer's turn."""
    study.progress(0.72 + 0.22 * number / len(study.layers), f"rounding {layer.name[:80]}")
