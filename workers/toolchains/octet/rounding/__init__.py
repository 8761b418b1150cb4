"""Grids of fewer bits and learned rounding, on a graph that a toolchain has quantized already."""

import importlib
from pathlib import Path
from typing import cast

from app.domain.recipes import PtqStatic, Single, WeightOnly
from workers.stage_records.common import Progress
from workers.stage_records.making import TransformSpec
from workers.toolchains.made import Made


def learn(made: Made, spec: TransformSpec, scratch: Path, progress: Progress) -> Made:
    """Return the graph with its weights rounded as the recipe says; as it was where the recipe asks for nothing.

    Only the integers of weights change, for a grid of fewer bits their scales, and for activations of fewer bits the
    scales and zero points of their quantizers, with a Clip in front of each.

    Raises:
        ToolchainFailed: there is nothing to learn, there are no rows to learn from, or the graph cannot be run.
        DatasetUnfit: a calibration row that the model does not take.
    """
    if not _asked(spec.recipe):
        return made
    # torch is loaded only now: the other recipes do without it
    module = importlib.import_module("workers.toolchains.octet.rounding.learning")
    return cast(Made, module.learn(made, spec, scratch, progress))


def _asked(recipe: Single) -> bool:
    if isinstance(recipe, PtqStatic):
        return recipe.narrow or recipe.rounding != "nearest"
    return isinstance(recipe, WeightOnly) and recipe.rounding != "nearest"
