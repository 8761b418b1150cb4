"""Reads a single `.onnx` file. Weights outside of it need the archive that `onnx_zip` reads."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from app.domain.errors import UploadRefused, UploadUnreadable
from workers.formats import tidy
from workers.formats.original import Input, Original, shared_batch
from workers.formats.session import ERRORS, NAME, Session
from workers.graphs import is_external, tensors_of

# Tried in turn for axes that are symbolic but not the batch: lengths of text, sides of images.
_SIZES = (16, 32, 64, 224, 8, 128, 1)
_DRAWN_KINDS = "fiub"


def read(upload: Path, _temporary: Path) -> Original:
    """Read an `.onnx` file.

    Raises:
        UploadUnreadable: it is not ONNX, or the graph is broken.
        UploadRefused: it needs files beside it, or operators outside the standard.
    """
    graph = parse(upload)
    for tensor in tensors_of(graph):
        if is_external(tensor):
            raise UploadRefused(
                f"The weights of tensor {tensor.name!r} are in another file: send a .zip of the .onnx with its data."
            )
    return as_original(graph, upload)


def parse(path: Path) -> onnx.ModelProto:
    """Parse a file without looking at any other."""
    try:
        graph = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise _not_onnx() from error
    if not graph.graph.node or not graph.ir_version:
        raise _not_onnx()
    return graph


def _not_onnx() -> UploadUnreadable:
    return UploadUnreadable(
        "The upload is neither a torch.export program (.pt2), nor ONNX, nor a .zip of ONNX; or it ends early: "
        "export the model again."
    )


def as_original(graph: onnx.ModelProto, source: Path) -> Original:
    """Take a parsed graph, its weights inside, for what the file `source` says."""
    tidied = tidy.tidy(graph)
    inputs = list(tidied.graph.input)
    for each in inputs:
        _check_input(each)
    batch = _batch(inputs)
    try:
        session = Session(source)
    except ERRORS as error:
        raise _refused_by_engine(error) from error
    return Original(
        graph=tidied, name=NAME, inputs=_inputs_that_run(session, inputs), batch=batch, answer=session.answer
    )


def _check_input(declared: onnx.ValueInfoProto) -> None:
    tensor = declared.type.tensor_type
    if not declared.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise UploadRefused(f"Input {declared.name!r} is not a tensor with a declared rank: export it as one.")
    if np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).kind not in _DRAWN_KINDS:
        raise UploadRefused(f"Input {declared.name!r} has a type that cannot be sent: use a number type or bool.")
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value < 1:
            dim.ClearField("dim_value")  # how some exporters say "any size"


def _batch(inputs: list[onnx.ValueInfoProto]) -> int | Literal["symbolic"] | None:
    firsts = [each.type.tensor_type.shape.dim[0] if each.type.tensor_type.shape.dim else None for each in inputs]
    if any(dim is None for dim in firsts):
        return None
    if all(dim is not None and not dim.HasField("dim_value") for dim in firsts):
        names = {dim.dim_param for dim in firsts if dim is not None} - {""}
        return "symbolic" if len(names) <= 1 else None
    return shared_batch([dim.dim_value if dim is not None and dim.HasField("dim_value") else None for dim in firsts])


def _inputs_that_run(session: Session, inputs: list[onnx.ValueInfoProto]) -> tuple[Input, ...]:
    """Choose sizes for the symbolic axes that the graph takes."""
    reason: Exception | None = None
    for size in _SIZES:
        chosen = tuple(_input(each, size) for each in inputs)
        try:
            session.answer({each.name: each.draw(np.random.default_rng(0), rows=None) for each in chosen})
        except ERRORS as error:
            reason = error
            if not any(_is_symbolic(each) for each in inputs):
                break
        else:
            return chosen
    raise UploadUnreadable(
        f"The model cannot be run on random input: {_first_line(reason)}: "
        "fix the sizes of all axes but the batch and export it again."
    ) from reason


def _is_symbolic(declared: onnx.ValueInfoProto) -> bool:
    return any(not dim.HasField("dim_value") for dim in declared.type.tensor_type.shape.dim[1:])


def _input(declared: onnx.ValueInfoProto, size: int) -> Input:
    tensor = declared.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else size for dim in tensor.shape.dim]
    if tensor.shape.dim and not tensor.shape.dim[0].HasField("dim_value"):
        shape[0] = 1
    return Input(
        name=declared.name, dtype=np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape=tuple(shape)
    )


def _refused_by_engine(error: Exception) -> UploadUnreadable:
    return UploadUnreadable(f"ONNX Runtime cannot load the model: {_first_line(error)}: export it again.")


def _first_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[0].rsplit(" : ", 1)[-1][:300]
