"""`torch.export` programs: loading a `.pt2`, its inputs, and its way to ONNX. Loading one can execute code from it."""

import logging
import pickle
import warnings
import zipfile
from pathlib import Path

import onnx
import torch

from app.domain.errors import ToolchainFailed, UploadRefused, UploadUnreadable

# What the loader was seen to raise on files that are not whole.
_LOAD_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


def load(upload: Path) -> torch.export.ExportedProgram:
    """Load what `torch.export.save` wrote.

    Raises:
        UploadUnreadable: torch cannot load it.
    """
    try:
        with upload.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(file)
    except _LOAD_ERRORS as error:
        raise UploadUnreadable(
            f"torch {torch.__version__} cannot load the .pt2{_told(error)}: it is damaged, or was written by a release "
            "that this one does not read: export it again."
        ) from error


def user_inputs(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Return the inputs by name, in order, as tensors that have a shape and a type but no values.

    Raises:
        UploadRefused: an input is no tensor, or there is none.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = {name: values.get(name) for name in program.graph_signature.user_inputs if isinstance(name, str)}
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    if not tensors or len(tensors) != len(program.graph_signature.user_inputs):
        raise UploadRefused(
            "The .pt2 takes inputs that are not tensors, or none at all: export a module whose forward takes tensors."
        )
    return tensors


def most_rows(program: torch.export.ExportedProgram, tensors: list[torch.Tensor]) -> int:
    """Return the largest size that the first axis of the first input may have."""
    first = tensors[0].shape[0] if tensors[0].dim() else None
    if not isinstance(first, torch.SymInt):
        return 2**31 - 1
    limits = program.range_constraints.get(first.node.expr)
    upper = getattr(limits, "upper", None)
    return int(upper) if upper is not None and upper.is_Integer else 2**31 - 1


def to_onnx(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    """Export a program, weights inside.

    Raises:
        ToolchainFailed: the exporter cannot express it.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
    except (torch.onnx.OnnxExporterError, RuntimeError, NotImplementedError, TypeError) as error:
        raise ToolchainFailed(
            f"The ONNX exporter of torch {torch.__version__} cannot express the model: {reason(error)}"
        ) from error
    assert exported is not None  # noqa: S101 - for the type checker: only the old exporter returns nothing
    graph: onnx.ModelProto = exported.model_proto
    return graph


def reason(error: BaseException) -> str:
    """Find the sentence that says what is missing: the exporter wraps it in its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _told(error: BaseException) -> str:
    line = _first_line(error)
    # The loader's own last word only points at the log, where the reason is.
    return "" if "check the warnings above" in line else f" ({line})"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
