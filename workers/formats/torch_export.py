"""Reads a `.pt2` that `torch.export.save` wrote. Loading one can execute code from the file: see docs/adr/0003."""

import logging
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch.utils import _pytree as pytree

from app.domain.errors import ToolchainFailed, UploadRefused, UploadUnreadable
from workers import confinement
from workers.formats import tidy
from workers.formats.original import Arrays, Input, Original, shared_batch

NAME = f"torch {torch.__version__}"
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
_DROPOUT = "aten.dropout"


def read(upload: Path, _temporary: Path) -> Original:
    """Load a `.pt2`, export its graph to ONNX.

    Raises:
        UploadUnreadable: torch cannot load it.
        UploadRefused: exported in training mode, compiled, or with inputs that are not tensors.
        ToolchainFailed: the ONNX exporter cannot express the graph.
        SandboxUnavailable: the machine cannot confine what the file may execute.
    """
    confinement.require_complete("a .pt2 file")
    _refuse_compiled(upload)
    program = _load(upload)
    _refuse_training(program)
    tensors = _user_inputs(program)
    symbols = _sizes(tensors)
    inputs = tuple(_input(name, tensor, symbols) for name, tensor in tensors.items())
    graph = tidy.tidy(_to_onnx(program))
    return Original(
        graph=graph,
        name=NAME,
        inputs=inputs,
        batch=_batch(list(tensors.values())),
        answer=_Module(program, [each.name for each in inputs], [each.name for each in graph.graph.output]).answer,
        most_rows=_most_rows(program, list(tensors.values())),
    )


def _refuse_compiled(upload: Path) -> None:
    with zipfile.ZipFile(upload) as file:
        compiled = any("data/aotinductor/" in name for name in file.namelist())
    if compiled:
        raise UploadRefused(
            "The .pt2 holds a compiled (AOTInductor) program: send the one that torch.export.save writes."
        )


def _load(upload: Path) -> torch.export.ExportedProgram:
    try:
        with upload.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(file)
    except _LOAD_ERRORS as error:
        raise UploadUnreadable(
            f"torch {torch.__version__} cannot load the .pt2{_told(error)}: it is damaged, or was written by a release "
            "that this one does not read: export it again."
        ) from error


def _refuse_training(program: torch.export.ExportedProgram) -> None:
    # Batch statistics that a run updates, or rows dropped at random, give no answer to compare with.
    updates = bool(program.graph_signature.buffers_to_mutate)
    drops = any(
        node.op == "call_function" and str(node.target).startswith(_DROPOUT) and node.args[2:3] == (True,)
        for node in program.graph.nodes
    )
    if updates or drops:
        raise UploadRefused("The .pt2 was exported in training mode: call module.eval() before torch.export.export.")


def _user_inputs(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = {name: values.get(name) for name in program.graph_signature.user_inputs if isinstance(name, str)}
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    if not tensors or len(tensors) != len(program.graph_signature.user_inputs):
        raise UploadRefused(
            "The .pt2 takes inputs that are not tensors, or none at all: export a module whose forward takes tensors."
        )
    return tensors


def _sizes(tensors: dict[str, torch.Tensor]) -> dict[Any, int]:
    """Return a size for every symbol: the one the module was exported with."""
    sizes: dict[Any, int] = {}
    for tensor in tensors.values():
        for size in tensor.shape:
            if isinstance(size, torch.SymInt):
                sizes[size.node.expr] = int(size.node.hint or 2)
    return sizes


def _input(name: str, tensor: torch.Tensor, sizes: dict[Any, int]) -> Input:
    shape = tuple(sizes[size.node.expr] if isinstance(size, torch.SymInt) else int(size) for size in tensor.shape)
    try:
        dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    except TypeError as error:
        raise UploadRefused(f"Input {name!r} is {tensor.dtype}, which cannot be sent: take float32 instead.") from error
    if dtype.kind not in "fiub":
        raise UploadRefused(f"Input {name!r} is {tensor.dtype}, which cannot be sent: take float32 instead.")
    return Input(name=name, dtype=np.dtype(dtype), shape=shape)


def _batch(tensors: list[torch.Tensor]) -> int | Literal["symbolic"] | None:
    firsts = [tensor.shape[0] if tensor.dim() else None for tensor in tensors]
    if all(isinstance(size, torch.SymInt) for size in firsts):
        return "symbolic" if len({str(size) for size in firsts}) == 1 else None
    return shared_batch([size if type(size) is int else None for size in firsts])


def _most_rows(program: torch.export.ExportedProgram, tensors: list[torch.Tensor]) -> int:
    first = tensors[0].shape[0] if tensors[0].dim() else None
    if not isinstance(first, torch.SymInt):
        return 2**31 - 1
    limits = program.range_constraints.get(first.node.expr)
    upper = getattr(limits, "upper", None)
    return int(upper) if upper is not None and upper.is_Integer else 2**31 - 1


def _to_onnx(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
    except (torch.onnx.OnnxExporterError, RuntimeError, NotImplementedError, TypeError) as error:
        raise ToolchainFailed(
            f"The ONNX exporter of torch {torch.__version__} cannot express the model: {_reason(error)}"
        ) from error
    assert exported is not None  # noqa: S101 - for the type checker: only the old exporter returns nothing
    graph: onnx.ModelProto = exported.model_proto
    return graph


class _Module:
    """The original, to be asked."""

    def __init__(self, program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str]) -> None:
        self._module = program.module()
        self._structure = program.call_spec.in_spec
        self._inputs = inputs
        self._outputs = outputs

    def answer(self, arrays: Arrays) -> Arrays:
        leaves = [torch.from_numpy(arrays[name]) for name in self._inputs]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        with torch.inference_mode():
            answers = pytree.tree_leaves(self._module(*args, **kwargs))
        tensors = [each for each in answers if isinstance(each, torch.Tensor)]
        if len(tensors) != len(self._outputs):
            raise ToolchainFailed(
                f"The module gives {len(tensors)} tensors but its ONNX graph {len(self._outputs)}: "
                "return every tensor once, and nothing else."
            )
        return {name: each.detach().numpy() for name, each in zip(self._outputs, tensors, strict=True)}


def _told(error: BaseException) -> str:
    line = _first_line(error)
    # The loader's own last word only points at the log, where the reason is.
    return "" if "check the warnings above" in line else f" ({line})"


def _reason(error: BaseException) -> str:
    """Find the sentence that says what is missing: the exporter wraps it in its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
