"""Activations on 16 levels: the graph keeps its 8-bit types, a Clip in front of a quantizer cuts its levels off.

Weights of fewer bits are `narrow`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from app.domain.recipes import PtqStatic
from app.domain.recipes.static import WIDE
from workers.stage_records.common import Progress
from workers.stage_records.making import TransformSpec
from workers.toolchains.graph import add_constant, free_name, keep_nodes
from workers.toolchains.histogram import Histogram, least_squares_range, least_squares_scale
from workers.toolchains.octet.rounding.levels import Levels, bounds, levels_of, write_levels
from workers.toolchains.octet.rounding.playback import run_through
from workers.toolchains.octet.rounding.readers import Readers, met, readers_of
from workers.toolchains.octet.rounding.study import BATCH, batched
from workers.toolchains.octet.rounding.wiring import Wiring

COUNT = 16
"""Levels of an activation of 4 bits."""

MOST_VALUES = 32 * 2**20
"""Of all values that one batch leaves in the tensors observed together; more are observed in another pass."""

_SHARE = 0.71
_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Coarse:
    """What became of the activations.

    Attributes:
        readers: names of the nodes that read a quantizer.
        notes: sentences for the report.
    """

    readers: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def coarsen(model: onnx.ModelProto, spec: TransformSpec, scratch: Path, progress: Progress) -> Coarse:
    """Put every activation that a layer multiplies with on 16 levels, where the recipe asks for it.

    What only additions and the like read keeps 8 bits: nothing is gained there, and OpenVINO does not round what lies
    between a convolution and an Add, so that its answers would be other than those of ONNX Runtime.

    The scales have the least squared error on histograms of what the graph as it is leaves in each tensor. Quantizers
    that have one scale, and are read by the same Concat or share a stored scale, get one scale. A quantizer that a
    layer in `int8_layers` reads keeps what it has, unless a layer that is not in there reads it too.

    Raises:
        ToolchainFailed: ONNX Runtime cannot run the graph.
        DatasetUnfit: a calibration row that the model does not take.
    """
    recipe = spec.recipe
    if not isinstance(recipe, PtqStatic) or recipe.activation_bits == WIDE:
        return Coarse()
    progress(_SHARE, f"cutting activations to {COUNT} levels")
    wiring = Wiring(model.graph)
    found = levels_of(wiring)
    unread = _unread(wiring, found)
    readers = {name: readers_of(levels, wiring) for name, levels in found.items()}
    groups = [group for group in met(found, readers) if not _keeps(group, readers, recipe)]
    seen = _histograms(model, sorted({found[name].source for group in groups for name in group}), spec, scratch)
    cut: list[Levels] = []
    for group in groups:
        total = _joined([seen[source] for source in sorted({found[name].source for name in group})])
        cut += [_cut(found[name], wiring, total, symmetric=recipe.activations == "symmetric") for name in group]
    _insert(wiring, cut)
    return Coarse(
        readers=frozenset(name for each in readers.values() for name in each.names),
        notes=(*_shared(groups, readers, recipe), *unread),
    )


def _keeps(group: Sequence[str], readers: Mapping[str, Readers], recipe: PtqStatic) -> bool:
    """Whether quantizers keep 8 bits: no layer reads them but those that are to have 8."""
    return all(readers[each].layers <= set(recipe.int8_layers) for each in group)


def _cut(levels: Levels, wiring: Wiring, seen: Histogram, *, symmetric: bool) -> Levels:
    """Give a quantizer the best scale for 16 levels, and return it with the levels it is to be cut to."""
    zero = int(levels.zero_point.reshape(-1)[0])
    present = float(levels.scale.reshape(-1)[0])
    qmin = _lowest(levels, zero, symmetric=symmetric)
    qmax = qmin + COUNT - 1
    if symmetric:
        scale = least_squares_scale(seen, low=qmin - zero, high=qmax - zero)
    else:
        low, high = least_squares_range(seen, steps=COUNT - 1, symmetric=False) if seen.counts.any() else (0.0, 0.0)
        scale = (high - low) / (COUNT - 1)
        zero = qmin + round(-low / scale) if scale > np.finfo(np.float32).tiny else int(np.clip(zero, qmin, qmax))
    usable = np.float32(scale) >= np.finfo(np.float32).tiny  # not so where nothing but zeros was seen
    return write_levels(
        wiring,
        replace(levels, qmin=qmin, qmax=qmax),
        scale=np.array(scale if usable else present, np.float32),
        zero_point=np.array(zero, np.int32),
    )


def _lowest(levels: Levels, zero: int, *, symmetric: bool) -> int:
    """Return the lowest level: half of them below a zero point that stays, but not below the type's."""
    if symmetric:
        return int(np.clip(zero - COUNT // 2, levels.qmin, levels.qmax - COUNT + 1))
    return max(levels.qmin, -(COUNT // 2))


def _insert(wiring: Wiring, cut: Sequence[Levels]) -> None:
    """Put a Clip in front of each quantizer."""
    nodes: list[onnx.NodeProto] = []
    taken = set(wiring.places)
    for node in wiring.nodes:
        levels = next((each for each in cut if each.quantize is node), None)
        if levels is not None:
            nodes.append(_clip(wiring, levels, taken))
            node.input[0] = nodes[-1].output[0]
        nodes.append(node)
    keep_nodes(wiring.graph, nodes)


def _clip(wiring: Wiring, levels: Levels, taken: set[str]) -> onnx.NodeProto:
    name = f"{levels.name}_levels"
    while name in taken:
        name += "_"
    taken.add(name)
    ends = (
        add_constant(wiring.graph, end, like=f"{name}_{what}")
        for what, end in zip(("low", "high"), bounds(levels), strict=True)
    )
    output = free_name(wiring.graph, f"{name}_output")
    return helper.make_node("Clip", [levels.source, *ends], [output], name=name)


def _histograms(
    model: onnx.ModelProto, tensors: Sequence[str], spec: TransformSpec, scratch: Path
) -> dict[str, Histogram]:
    source = spec.calibration
    histograms = {name: Histogram() for name in tensors}
    if source is None or not tensors:
        return histograms
    one = batched(replace(source, rows=source.rows[:1]), spec, scratch=scratch)
    sizes = {name: array.size for each in run_through(model, one, tensors) for name, array in each.items()}
    for group in _groups(sizes):
        for arrays in run_through(model, batched(source, spec, scratch=scratch), group):
            for name in group:
                histograms[name].add(arrays[name])
    return histograms


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Part the tensors, in order, into groups whose values of one batch are within `MOST_VALUES`, if there are two."""
    group, room = list[str](), MOST_VALUES // BATCH
    for name, size in sizes.items():
        if group and size > room:
            yield group
            group, room = [], MOST_VALUES // BATCH
        group.append(name)
        room -= size
    if group:
        yield group


def _joined(histograms: Sequence[Histogram]) -> Histogram:
    total = Histogram()
    for each in histograms:
        total.merge(each)
    return total


def _shared(groups: Sequence[Sequence[str]], readers: Mapping[str, Readers], recipe: PtqStatic) -> tuple[str, ...]:
    """Say which layers named in `int8_layers` read 4 bits all the same."""
    named = set(recipe.int8_layers)
    cut = sorted({name for group in groups for each in group for name in readers[each].names & named})
    if not cut:
        return ()
    shown = ", ".join(name[:80] for name in cut[:_NAMES_SHOWN])
    more = f" and {len(cut) - _NAMES_SHOWN} more" if len(cut) > _NAMES_SHOWN else ""
    return (f"Layers {shown}{more} in int8_layers read 4-bit activations: other layers read the same ones.",)


def _unread(wiring: Wiring, found: Mapping[str, Levels]) -> tuple[str, ...]:
    """Say how many quantizers of activations could not be followed."""
    moving = (node for node in wiring.nodes if node.op_type == "QuantizeLinear" and wiring.moving(node))
    count = sum(1 for node in moving) - len(found)
    return (f"{count} activations keep 8 bits: their scale is not stored, or is read in an odd way.",) if count else ()
