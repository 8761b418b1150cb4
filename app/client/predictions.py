"""Bodies and answers of `/predict`: arrays, nested lists and images into bytes, and back into a `Prediction`."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json

from app.client.records import Array, Class, Nested, Prediction
from app.client.transport import read_as
from app.domain.errors import RequestInvalid, UnsupportedFormat

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
_IMAGES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}

Inputs = Array | Mapping[str, Array] | Nested | bytes | Path
"""An array for a model with one input; arrays by name; nested lists; an encoded image, or a file of any of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What goes over the wire, and what is asked back."""

    content: bytes
    content_type: str
    accept: str = JSON


def encode(inputs: Inputs) -> Body:
    """Make the request's body.

    Raises:
        RequestInvalid: what was given cannot be an input.
        UnsupportedFormat: bytes or a file of a kind that `/predict` does not take.
    """
    match inputs:
        case Path():
            return _of_file(inputs)
        case bytes():
            return _of_image(inputs)
        case np.ndarray():
            return Body(content=_saved(inputs), content_type=NPY)
        case Mapping() if inputs and all(isinstance(array, np.ndarray) for array in inputs.values()):
            return _of_arrays(inputs)
        case Mapping() | list() | tuple():
            return Body(content=to_json({"inputs": inputs}), content_type=JSON)
    raise RequestInvalid(f"A {type(inputs).__name__} cannot be an input: give an array, arrays by name, or an image.")


def _of_file(path: Path) -> Body:
    content = path.read_bytes()
    match path.suffix.lower():
        case ".npy":
            return Body(content=content, content_type=NPY)
        case ".npz":
            return Body(content=content, content_type=NPZ, accept=NPZ)
        case ".json":
            return Body(content=content, content_type=JSON)
    return _of_image(content)


def _of_image(content: bytes) -> Body:
    for start, content_type in _IMAGES.items():
        if content.startswith(start):
            return Body(content=content, content_type=content_type)
    raise UnsupportedFormat("The input is neither JPEG nor PNG: send one of these, or .npy, .npz or .json.")


def _of_arrays(arrays: Mapping[str, Array]) -> Body:
    buffer = io.BytesIO()
    np.savez(buffer, **dict[str, Any](arrays))
    return Body(content=buffer.getvalue(), content_type=NPZ, accept=NPZ)


def _saved(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    data: Nested

    def array(self) -> Array:
        # NumPy has no bfloat16; float32 holds each of its values exactly
        dtype = np.dtype("float32" if self.dtype == "bfloat16" else self.dtype)
        return np.asarray(self.data, dtype=dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    model: str
    version: int
    variant: str
    outputs: dict[str, _Tensor]
    queue_ms: float
    compute_ms: float
    top: tuple[tuple[Class, ...], ...] | None = None


def decode(content: bytes, headers: Mapping[str, str]) -> Prediction:
    """Read an answer in JSON, or as `.npz` with the facts in its headers."""
    if headers["Content-Type"].startswith(NPZ):
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            outputs: dict[str, Array] = dict(arrays)
        return Prediction(
            model=headers["Octet-Model"],
            version=int(headers["Octet-Version"]),
            variant=headers["Octet-Variant"],
            outputs=outputs,
            queue_ms=float(headers["Octet-Queue-Ms"]),
            compute_ms=float(headers["Octet-Compute-Ms"]),
        )
    answer = read_as(_Answer, content)
    return Prediction(
        model=answer.model,
        version=answer.version,
        variant=answer.variant,
        outputs={name: tensor.array() for name, tensor in answer.outputs.items()},
        queue_ms=answer.queue_ms,
        compute_ms=answer.compute_ms,
        top=answer.top,
    )
