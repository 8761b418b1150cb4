"""Techniques: float32 graph in, variant's graph out.

A handler, `workers.toolchains.<toolchain>.<technique>.transform`, changes the graph and says how an engine must run it.
What comes before it, whatever the toolchain - operators raised, nodes named, batch normalizations folded, channels
equalized - is `workers.toolchains.prepare`; what comes after it - grids of fewer bits and learned rounding - is
`workers.toolchains.octet.rounding`; clean, checked, opened by a second engine is `workers.toolchains.finish`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import onnx

from app.domain.errors import ToolchainFailed
from workers.stage_records.common import VARIANT_OUTPUT, Progress
from workers.stage_records.making import TransformResult, TransformSpec
from workers.toolchains.finish import finish
from workers.toolchains.graph import load_graph
from workers.toolchains.libraries import versions
from workers.toolchains.made import Made
from workers.toolchains.octet.rounding import learn
from workers.toolchains.prepare import prepare

Handler = Callable[[onnx.ModelProto, TransformSpec, Path, Progress], Made]

LIBRARIES: dict[str, tuple[str, ...]] = {
    "nncf": ("nncf", "onnx", "onnxruntime", "numpy"),
    "ort": ("onnx", "onnxruntime", "numpy"),
    "torchao": ("torch", "torchao", "onnx", "onnxscript", "numpy"),
    "octet": ("onnx", "ml_dtypes", "numpy"),
}
"""What each toolchain makes artifacts with: its line in every report."""


def transform(spec: TransformSpec, scratch: Path, progress: Progress) -> TransformResult:
    """Make `out/variant.onnx` from the float32 artifact, as the recipe says.

    Raises:
        ToolchainFailed: the recipe cannot be carried out on this graph; nothing in it is ever left out silently.
        PrecisionUnavailable: this CPU cannot run what the recipe asks for.
        DatasetUnfit: a calibration row that the model does not take.
    """
    # the float graph gets no name here: learning needs the memory that the toolchain is done with
    made = handler(spec)(prepare(load_graph(scratch / spec.artifact), spec.recipe), spec, scratch, progress)
    made = learn(made, spec, scratch, progress)
    progress(0.95, "checking the variant's graph")
    finish(made.graph, spec.signature, path=scratch / VARIANT_OUTPUT)
    progress(1.0, "made the variant")
    return TransformResult(
        artifact=VARIANT_OUTPUT,
        execution=made.execution,
        libraries=versions(LIBRARIES[spec.recipe.toolchain]),
        notes=made.notes,
    )


def handler(spec: TransformSpec) -> Handler:
    """Return the function that carries out a recipe; its libraries are loaded only now."""
    where = f"workers.toolchains.{spec.recipe.toolchain}.{spec.recipe.technique}"
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name != where:
            raise
        raise ToolchainFailed(
            f"The toolchain {spec.recipe.toolchain!r} has no technique {spec.recipe.technique!r}: take another."
        ) from error
    return cast(Handler, module.transform)
