"""Static post-training quantization by torchao's PT2E, from the uploaded program to QDQ ONNX."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from app.domain.errors import OctetError, ToolchainFailed
from app.domain.recipes import PtqStatic
from app.domain.variants import Execution
from workers import confinement, torch_programs
from workers.data.batches import batches
from workers.stage_records.common import Progress
from workers.stage_records.making import TransformSpec
from workers.toolchains.made import Made
from workers.toolchains.torchao import batch_norms, export, layers, operators, products
from workers.toolchains.torchao.calibration import SHARE, Program, calibrate, settle
from workers.toolchains.torchao.quantizer import AtenQuantizer
from workers.toolchains.torchao.specs import Specs

Array = npt.NDArray[Any]

AXIS = "batch"
# What torch and torchao let through from their own code when they meet a program they do not understand.
_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, NotImplementedError)


def transform(graph: onnx.ModelProto, spec: TransformSpec, scratch: Path, progress: Progress) -> Made:
    """Quantize weights and activations to 8 bits.

    Args:
        graph: the float32 graph, for the names and shapes that the variant keeps.

    Raises:
        ToolchainFailed: there is no `.pt2`, or the program or the recipe is beyond the toolchain.
        DatasetUnfit: a calibration row that the model does not take.
        SandboxUnavailable: the machine cannot confine what the file may execute.
    """
    recipe, calibration = spec.recipe, spec.calibration
    if not isinstance(recipe, PtqStatic) or calibration is None or not calibration.rows:
        raise ToolchainFailed("Static quantization needs calibration rows: name a calibration dataset.")
    if spec.upload is None:
        raise ToolchainFailed(
            "torchao starts from a .pt2 upload; this model was uploaded as ONNX: set toolchain to nncf."
        )
    confinement.require_complete("a .pt2 file")
    program = Program.load(scratch / spec.upload)
    module, notes = _observed(program, graph.graph, recipe)
    with _explained("run"):
        calibrate(module, program, calibration, spec.signature, scratch=scratch, progress=progress)
    settle(module, recipe)
    progress(SHARE + 0.05, "exporting the quantized program")
    with _explained("convert"):
        made = export.to_onnx(convert_pt2e(module), program)
    export.take_names(made.graph, graph.graph)
    if spec.signature.batched and program.fixed_rows is not None:
        made = _with_any_batch(made, spec, scratch, size=program.fixed_rows)
    export.declare_shapes(made.graph, graph.graph)
    if not layers.rename(made.graph, graph.graph):
        notes.append(
            "The variant's layers have names of their own: they are not those of the float32 graph one by one."
        )
    return Made(graph=made, execution=Execution(float_precision=recipe.float_precision), notes=tuple(notes))


def _observed(program: Program, float32: onnx.GraphProto, recipe: PtqStatic) -> tuple[GraphModule, list[str]]:
    """Return the program with observers in it, and notes about the recipe."""
    module = program.exported.module(check_guards=False)
    (batch_norms.fold if recipe.fold_batch_norm else batch_norms.write_all_out)(module)
    products.take_weights_once(module)
    in_float, others = layers.in_float(recipe.float_layers, float32, module.graph)
    quantizer = AtenQuantizer(Specs.of(recipe), in_float=in_float)
    with _explained("prepare"):
        prepared = prepare_pt2e(module, quantizer)
    if not quantizer.quantized:
        raise ToolchainFailed(
            "torchao found no layer to quantize (recurrent layers stay in float): name fewer float_layers, or take a "
            "model with convolutions or matrix products."
        )
    return prepared, [*_ignored(others), *_left_in_float(module)]


def _ignored(names: list[str]) -> list[str]:
    return [f"float_layers names {name[:80]!r}, no layer with weights: torchao took no notice." for name in names]


def _left_in_float(module: GraphModule) -> list[str]:
    """Name what the toolchain has no int8 form for."""
    targets = [node.target for node in module.graph.nodes]
    computing = [node for node, _ in operators.compute_layers(module.graph)]
    notes = []
    if any(target in operators.RECURRENT for target in targets):
        notes.append("The recurrent layers stay in float: torchao has no static quantization for them.")
    if any(operators.is_transposed(node) and operators.groups(node) > 1 for node in computing):
        notes.append("The transposed convolutions in groups stay in float: OpenVINO has no int8 kernel for them.")
    return notes


def _with_any_batch(made: onnx.ModelProto, spec: TransformSpec, scratch: Path, *, size: int) -> onnx.ModelProto:
    assert spec.calibration is not None  # noqa: S101 - for the type checker: `transform` has looked
    batch = next(batches(spec.calibration, spec.signature, scratch=scratch, size=size + 1))
    rows = {name: _more_rows(array, size + 1) for name, array in batch.inputs.items()}
    return export.with_any_batch(made, rows, size=size, axis=AXIS)


def _more_rows(array: Array, count: int) -> Array:
    """Make up what is missing from the rows there are, their values moved by one."""
    while len(array) < count:
        array = np.concatenate([array, np.roll(array, 1, axis=-1)])
    return np.ascontiguousarray(array[:count])


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    try:
        yield
    except OctetError:
        raise
    except _ERRORS as error:
        raise ToolchainFailed(
            f"torchao cannot {doing} this program: {torch_programs.reason(error)}: set toolchain to nncf."
        ) from error
