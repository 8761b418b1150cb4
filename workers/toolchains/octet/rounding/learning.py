"""Learned rounding from end to end: which layers, on which rows, and what could not be learned."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqStatic, WeightOnly
from app.domain.recipes.static import WIDE
from workers.stage_records.common import Progress, RowSource
from workers.stage_records.making import TransformSpec
from workers.toolchains.graph import load_graph
from workers.toolchains.made import Made
from workers.toolchains.octet.rounding.by_block import learn_brecq
from workers.toolchains.octet.rounding.by_layer import learn_adaround, learn_gptq
from workers.toolchains.octet.rounding.coarse import Coarse, coarsen
from workers.toolchains.octet.rounding.layers import Layer, Source, layers_of, read_grid, read_integers, source_of
from workers.toolchains.octet.rounding.memory import give_back
from workers.toolchains.octet.rounding.narrow import Bounds, narrow
from workers.toolchains.octet.rounding.study import Study
from workers.toolchains.octet.rounding.wiring import Wiring
from workers.toolchains.prepare import prepare

Learner = Callable[[Study, RowSource], tuple[str, ...]]

LEARNERS: dict[str, Learner] = {"adaround": learn_adaround, "brecq": learn_brecq, "gptq": learn_gptq}
"""How a recipe's `rounding` is learned; each returns sentences for the report."""

_NAMES_SHOWN = 5


def learn(made: Made, spec: TransformSpec, scratch: Path, progress: Progress) -> Made:
    """Narrow weights and activations, and learn the weights, of a graph that a toolchain has quantized.

    Peak memory is that of both graphs, one piece of one of them opened in ONNX Runtime, and 48 MiB of samples or one
    block's weights eight times over; it does not grow with the rows. Every result follows from the recipe's seed.
    """
    recipe = spec.recipe
    if not isinstance(recipe, PtqStatic | WeightOnly):
        return made
    original = prepare(load_graph(scratch / spec.artifact), recipe)
    give_back()
    wiring, known = Wiring(made.graph.graph), Wiring(original.graph)
    layers, left = layers_of(wiring)
    sources = {layer.name: source_of(layer, wiring, original=original, known=known) for layer in layers}
    bounds = _narrowed(recipe, layers, sources, wiring, original=original, known=known)
    coarse = coarsen(made.graph, spec, scratch, progress)
    told = (*_left(recipe, left), *coarse.notes, *_unused(recipe, {*left, *(each.name for each in layers)}, coarse))
    if recipe.rounding == "nearest":
        return replace(made, notes=(*made.notes, *told))
    wiring = Wiring(made.graph.graph)
    layers = layers_of(wiring)[0]
    unknown = [layer.name for layer in layers if sources[layer.name] is None]
    study = Study(
        model=made.graph,
        wiring=wiring,
        original=original,
        known=known,
        layers=tuple(layer for layer in layers if layer.name not in unknown),
        sources={name: source for name, source in sources.items() if source is not None},
        bounds=bounds,
        spec=spec,
        scratch=scratch,
        folder=scratch / "rounding",
        seed=recipe.seed,
        progress=progress,
    )
    told = (*told, *_told(unknown, "are rounded to nearest"))
    return replace(made, notes=(*made.notes, *told, *_learned(study)))


def _learned(study: Study) -> tuple[str, ...]:
    recipe = study.spec.recipe
    if not study.layers or not isinstance(recipe, PtqStatic | WeightOnly):
        raise ToolchainFailed(
            "The graph has no quantized layer whose rounding can be learned: set rounding to nearest."
        )
    try:
        rows = study.rows()
        notes = LEARNERS[recipe.rounding](study, rows)
    finally:
        shutil.rmtree(study.folder, ignore_errors=True)
    asked = study.spec.calibration
    if asked is not None and len(rows.rows) < len(asked.rows):
        fewer = f"The rounding was learned on {len(rows.rows)} of {len(asked.rows)} rows, for the disk they take."
        return (*notes, fewer)
    return notes


def _narrowed(
    recipe: PtqStatic | WeightOnly,
    layers: list[Layer],
    sources: Mapping[str, Source | None],
    wiring: Wiring,
    *,
    original: onnx.ModelProto,
    known: Wiring,
) -> dict[str, Bounds]:
    """Put the layers on the grid of fewer bits that the recipe asks for, and return its bounds layer by layer."""
    if not isinstance(recipe, PtqStatic) or recipe.weight_bits == WIDE:
        return {}
    bounds = {}
    for layer in layers:
        if layer.name in recipe.int8_layers:
            continue
        source = sources[layer.name]
        if source is None:
            weight = read_grid(layer, wiring).value(read_integers(layer, wiring))
        else:
            weight = source.weight(layer, original=original, known=known)
        bounds[layer.name] = narrow(layer, wiring, weight, bits=recipe.weight_bits)
    return bounds


def _left(recipe: PtqStatic | WeightOnly, left: list[str]) -> tuple[str, ...]:
    """Say what becomes of the weights that cannot be rounded anew, if anything was asked of them."""
    if isinstance(recipe, PtqStatic) and recipe.weight_bits != WIDE:
        return _told(left, "keep 8 bits")
    return _told(left, "are rounded to nearest") if recipe.rounding != "nearest" else ()


def _unused(recipe: PtqStatic | WeightOnly, weighted: set[str], coarse: Coarse) -> tuple[str, ...]:
    """Say which names in `int8_layers` changed nothing."""
    named = recipe.int8_layers if isinstance(recipe, PtqStatic) else ()
    unused = [name for name in named if name not in weighted and name not in coarse.readers]
    return tuple(
        f"int8_layers names {name[:80]}, which has no quantized weight or input." for name in unused[:_NAMES_SHOWN]
    )


def _told(names: list[str], what: str) -> tuple[str, ...]:
    """Say of some layers what became of them, if there are any."""
    if not names:
        return ()
    shown = ", ".join(name[:80] for name in names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return (f"Layers {shown}{more} {what}: they share a weight, or take it in a way that cannot be followed.",)
