"""Techniques: float32 graph in, variant's graph out. One handler each and one line in `TECHNIQUES`.

A handler changes the graph; what every variant needs besides - clean, checked, opened by a second engine - is
`workers.toolchains.finish`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx

from app.domain.errors import ToolchainFailed
from app.domain.variants import Execution
from workers.stages import VARIANT_OUTPUT, Progress, TransformResult, TransformSpec
from workers.toolchains.finish import finish
from workers.toolchains.graph import load_graph
from workers.toolchains.libraries import versions

Handler = Callable[[onnx.ModelProto, TransformSpec, Path, Progress], onnx.ModelProto]


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """One line of the table: where the handler is, how an engine must run what it makes, what it is made with."""

    handler: str
    execution: Execution
    libraries: tuple[str, ...]


TECHNIQUES: dict[str, Technique] = {
    "ptq_static": Technique(
        handler="workers.toolchains.nncf.ptq_static:quantize",
        execution=Execution(float_precision="float32"),
        libraries=("nncf", "onnx", "onnxruntime", "numpy"),
    ),
    "cast": Technique(
        handler="workers.toolchains.onnx_cast.bfloat16:cast",
        execution=Execution(float_precision="bfloat16"),
        libraries=("onnx", "ml_dtypes", "numpy"),
    ),
}


def transform(spec: TransformSpec, scratch: Path, progress: Progress) -> TransformResult:
    """Make `out/variant.onnx` from the float32 artifact, as the recipe says.

    Raises:
        ToolchainFailed: the recipe cannot be carried out on this graph; nothing in it is ever left out silently.
        PrecisionUnavailable: this CPU cannot run what the recipe asks for.
        DatasetUnfit: a calibration row that the model does not take.
    """
    technique = TECHNIQUES.get(spec.recipe.technique)
    if technique is None:
        raise ToolchainFailed(
            f"No toolchain here knows the technique {spec.recipe.technique!r}: take one of {', '.join(TECHNIQUES)}."
        )
    graph = load_graph(scratch / spec.artifact)
    made = _handler(technique.handler)(graph, spec, scratch, progress)
    progress(0.95, "checking the variant's graph")
    finish(made, spec.signature, path=scratch / VARIANT_OUTPUT)
    progress(1.0, "made the variant")
    return TransformResult(
        artifact=VARIANT_OUTPUT, execution=technique.execution, libraries=versions(technique.libraries)
    )


def _handler(where: str) -> Handler:
    # imported when needed: one technique's libraries are slow to load and no use to another
    module, _, name = where.partition(":")
    return cast(Handler, getattr(importlib.import_module(module), name))
