"""Reads a `.pt2` that `torch.export.save` wrote. Loading one can execute code from the file: see docs/adr/0003."""

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils import _pytree as pytree

from app.domain.errors import ToolchainFailed, UploadRefused
from workers import confinement, evaluation_mode, torch_programs
from workers.formats import tidy
from workers.formats.original import Arrays, Input, Original, shared_batch

NAME = f"torch {torch.__version__}"


def read(upload: Path, _temporary: Path) -> Original:
    """Load a `.pt2`, take it in evaluation mode, export its graph to ONNX.

    Raises:
        UploadUnreadable: torch cannot load it.
        UploadRefused: compiled, with inputs that are not tensors, or without an evaluation mode.
        ToolchainFailed: the ONNX exporter cannot express the graph.
        SandboxUnavailable: the machine cannot confine what the file may execute.
    """
    confinement.require_complete("a .pt2 file")
    _refuse_compiled(upload)
    program = torch_programs.load(upload)
    was_training = evaluation_mode.take(program)
    tensors = torch_programs.user_inputs(program)
    symbols = _sizes(tensors)
    inputs = tuple(_input(name, tensor, symbols) for name, tensor in tensors.items())
    graph = tidy.tidy(torch_programs.to_onnx(program))
    return Original(
        graph=graph,
        name=NAME,
        inputs=inputs,
        batch=_batch(list(tensors.values())),
        answer=_Module(program, [each.name for each in inputs], [each.name for each in graph.graph.output]).answer,
        most_rows=torch_programs.most_rows(program, list(tensors.values())),
        was_training=was_training,
    )


def _refuse_compiled(upload: Path) -> None:
    with zipfile.ZipFile(upload) as file:
        compiled = any("data/aotinductor/" in name for name in file.namelist())
    if compiled:
        raise UploadRefused(
            "The .pt2 holds a compiled (AOTInductor) program: send the one that torch.export.save writes."
        )


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
