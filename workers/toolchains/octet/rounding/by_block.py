"""Learning block after block; a block that torch cannot run, or that is too large, layer after layer."""

import math

import numpy as np
import torch

from workers.stage_records.common import RowSource
from workers.toolchains.octet.rounding.activations import activation_after
from workers.toolchains.octet.rounding.adaround import POSITIONS
from workers.toolchains.octet.rounding.blocks import Block, blocks_of
from workers.toolchains.octet.rounding.brecq import BlockTask, Circuit, as_tensor, brecq, circuit_of
from workers.toolchains.octet.rounding.by_layer import keep_targets, round_adaround, tell
from workers.toolchains.octet.rounding.layers import write_integers
from workers.toolchains.octet.rounding.operators import NotTaken, untaken
from workers.toolchains.octet.rounding.playback import Playback, constant
from workers.toolchains.octet.rounding.soft import Effort
from workers.toolchains.octet.rounding.study import Study
from workers.toolchains.octet.rounding.threads import share_threads

MOST_LAYERS = 12
MOST_WEIGHTS = 3 * 2**20
"""Of a block: each takes 32 bytes while it is learned."""

MOST_STEPS, LEAST_STEPS = 1000, 200
WORK = 1e12
"""Multiplications that all blocks together may cost at most, unless that leaves fewer than `LEAST_STEPS`."""

MOST_TOGETHER = 8
"""Batches that one step sees where their maps are small, to see as many positions as a layer's step does."""

_AGREEMENT = 2e-2
"""How far torch may be from ONNX Runtime, as a share of the block's output. Both compute in float32, but where a sum
lies between two levels of an activation one may take the upper; an operator that is misread is off by far more."""


def learn_brecq(study: Study, rows: RowSource) -> tuple[str, ...]:
    """Round every block by BRECQ."""
    quantized, original = study.play_quantized(rows), study.play_original(rows)
    keep_targets(study, study.layers, original)
    blocks, kept = blocks_of(study.layers, study.wiring, study.known), study.milestones()
    why_not: dict[str, int] = {}
    for block in blocks:
        tell(study, study.layers.index(block.layers[0]), block.layers[0])
        reason = _round_block(study, block, quantized, original, units=len(blocks)) if len(block.layers) > 1 else ""
        if reason is None:
            continue
        if reason:
            why_not[reason] = why_not.get(reason, 0) + 1
        for layer in block.layers:
            if layer.name in kept:
                quantized.advance(study.place(layer))
                original.advance(study.float_place(layer))
            round_adaround(study, layer, quantized, original)
    quantized.close()
    original.close()
    return tuple(f"{_counted(count)} learned layer by layer: {reason}." for reason, count in why_not.items())


def _round_block(study: Study, block: Block, quantized: Playback, original: Playback, *, units: int) -> str | None:
    """Learn a block as one and write its integers; otherwise return why not."""
    reason = _unfit(study, block)
    if reason is not None:
        return reason
    quantized.advance(block.start)
    circuit = circuit_of(block, study.model, study.wiring)
    grids = tuple(study.grid(layer) for layer in block.layers)
    try:
        checked = _check(study, block, circuit, quantized)
    except NotTaken as error:
        return f"torch does not run its operator {error}"
    if checked is None:
        return "torch does not compute it as ONNX Runtime does"
    work, positions = checked
    place, target = _target(study, block)
    original.keep(target, until=place + 1)
    original.advance(place + 1)
    task = BlockTask(
        circuit=circuit,
        weights=tuple(study.weight(layer) for layer in block.layers),
        grids=grids,
        quantized=quantized,
        original=original,
        target=target,
        activation=activation_after(target, study.original, study.known),
        together=int(np.clip(POSITIONS // positions, 1, MOST_TOGETHER)),
    )
    share_threads(work)
    effort = Effort(steps=int(np.clip(WORK / units / (work * task.together), LEAST_STEPS, MOST_STEPS)))
    for layer, integers in zip(block.layers, brecq(task, effort, seed=study.seed), strict=True):
        write_integers(layer, study.wiring, integers)
    return None


def _unfit(study: Study, block: Block) -> str | None:
    if block.output is None:
        return "no single tensor leads on from it"
    weights = sum(math.prod(study.wiring.initializers[layer.integers].dims) for layer in block.layers)
    if len(block.layers) > MOST_LAYERS or weights > MOST_WEIGHTS:
        return f"more than {MOST_LAYERS} layers or {MOST_WEIGHTS:,} weights are too much to learn at once"
    missing = untaken(study.wiring.nodes[block.start : block.end])
    return f"torch does not run its operator {missing}" if missing else None


def _check(study: Study, block: Block, circuit: Circuit, quantized: Playback) -> tuple[int, int] | None:
    """Compare torch with ONNX Runtime on one batch; None if they differ.

    Returns the block's multiplications and its output positions.

    Raises:
        NotTaken: torch does not run one of its operators.
    """
    held = [constant(study.model, study.wiring, layer.dequantized) for layer in block.layers]
    with torch.no_grad():
        # the last batch may be smaller: a block with the size of a batch written into it would not run
        circuit(quantized.read(quantized.batches - 1), [as_tensor(each) for each in held])
        ours = circuit(quantized.read(0), [as_tensor(each) for each in held]).numpy()
    names = [circuit.output, *(layer.output for layer in block.layers)]
    theirs = next(quantized.values(names, place=block.end))
    difference = ours - theirs[circuit.output]
    if np.square(difference).mean() > _AGREEMENT**2 * max(float(np.square(theirs[circuit.output]).mean()), 1e-30):
        return None
    pairs = zip(block.layers, held, strict=True)
    work = sum(theirs[layer.output].size * layer.form.matrix(each).shape[2] for layer, each in pairs)
    last = block.layers[-1]
    return int(work), last.form.positions(theirs[last.output])


def _target(study: Study, block: Block) -> tuple[int, str]:
    """Return the place and the name of a block's output in the float graph."""
    place = study.known.places[study.wiring.nodes[block.end - 1].name]
    return place, str(study.known.nodes[place].output[0])


def _counted(count: int) -> str:
    return "One block was" if count == 1 else f"{count} blocks were"
