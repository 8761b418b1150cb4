"""Tensors out of protocol messages. Raw bytes become arrays without a copy."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from app.api.arrays import Array, count_elements, from_nested
from app.api.binary_tensors import (
    BYTES,
    DTYPES,
    Inputs,
    check_datatype,
    encoded_images,
    from_section,
    means_pixels,
)
from app.domain.errors import SignatureMismatch
from app.domain.tensors import DType, Signature, TensorSpec
from app.rpc.open_inference_pb2 import InferTensorContents, ModelInferRequest
from app.serving.terms import Pixels

Tensor: TypeAlias = ModelInferRequest.InferInputTensor
Content: TypeAlias = bytes | InferTensorContents

# The one field of InferTensorContents that each datatype belongs to; the 16-bit floats have none and come raw.
_FIELDS: dict[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_NUMBERS: dict[str, type[np.generic]] = {
    "bool_contents": np.bool_,
    "int_contents": np.int32,
    "int64_contents": np.int64,
    "uint_contents": np.uint32,
    "uint64_contents": np.uint64,
    "fp32_contents": np.float32,
    "fp64_contents": np.float64,
}
_LENGTH_BYTES = 4  # before every element of a raw BYTES tensor


def inputs_of(asked: ModelInferRequest, signature: Signature) -> Inputs:
    """Turn a request into a model's inputs: tensors, or images for a model with one input.

    Raises:
        SignatureMismatch, BatchTooLarge: names, datatypes, shapes or sizes do not fit.
    """
    _check_names(asked, signature)
    pairs = list(zip(asked.inputs, _contents(asked), strict=True))
    if len(pairs) == 1 and len(signature.inputs) == 1:
        images = _images(*pairs[0], signature.input(pairs[0][0].name))
        if images is not None:
            return images
    return {tensor.name: _array(tensor, content, signature.input(tensor.name)) for tensor, content in pairs}


def is_raw(asked: ModelInferRequest) -> bool:
    """Whether the inputs come as raw bytes."""
    return len(asked.raw_input_contents) > 0


def _check_names(asked: ModelInferRequest, signature: Signature) -> None:
    names = [tensor.name for tensor in asked.inputs]
    if len(set(names)) != len(names):
        raise SignatureMismatch("The request sends an input twice: send each once.")
    wanted = [output.name for output in asked.outputs]
    if len(set(wanted)) != len(wanted):
        raise SignatureMismatch("The request asks for an output twice: ask for each once.")
    known = {spec.name for spec in signature.outputs}
    for name in wanted:
        if name not in known:
            raise SignatureMismatch(f"The model has no output {name[:80]!r}: it has {', '.join(sorted(known))}.")


def _contents(asked: ModelInferRequest) -> Sequence[Content]:
    if not is_raw(asked):
        return [tensor.contents for tensor in asked.inputs]
    if len(asked.raw_input_contents) != len(asked.inputs):
        raise SignatureMismatch(
            f"The request has {len(asked.inputs)} inputs, but {len(asked.raw_input_contents)} raw_input_contents: send "
            "one for each, or none and contents."
        )
    if any(tensor.HasField("contents") for tensor in asked.inputs):
        raise SignatureMismatch("The request has contents and raw_input_contents: send all inputs in one of the ways.")
    return asked.raw_input_contents


def _images(tensor: Tensor, content: Content, spec: TensorSpec) -> Inputs | None:
    """Read images for the model's preprocessing, if that is what was sent."""
    if tensor.datatype == BYTES:
        section = content if isinstance(content, bytes) else _section(_elements(tensor, content))
        return encoded_images(spec.name, section, shape=tensor.shape)
    dtype = DTYPES.get(tensor.datatype)
    if dtype is DType.UINT8 and means_pixels(spec, dtype=dtype, shape=tensor.shape):
        pixels = TensorSpec(name=spec.name, dtype=DType.UINT8, shape=(None,) * len(tensor.shape))
        return Pixels(data=_array(tensor, content, pixels))
    return None


def _section(elements: Sequence[bytes]) -> bytes:
    """Lay a typed BYTES tensor out as a raw one."""
    return b"".join(len(element).to_bytes(_LENGTH_BYTES, "little") + element for element in elements)


def _array(tensor: Tensor, content: Content, spec: TensorSpec) -> Array:
    if isinstance(content, bytes):
        return from_section(spec, content, datatype=tensor.datatype, shape=tensor.shape)
    check_datatype(spec, tensor.datatype)
    elements = _elements(tensor, content)
    count = count_elements(spec.name, tensor.shape)
    if len(elements) != count:
        raise SignatureMismatch(
            f"Input {spec.name!r} has {len(elements)} elements, but its shape {list(tensor.shape)} needs {count}: send "
            "those."
        )
    numbers = np.fromiter(elements, _NUMBERS[_FIELDS[tensor.datatype]], count)
    return from_nested(numbers, spec).reshape(tuple(tensor.shape))


def _elements(tensor: Tensor, content: InferTensorContents) -> Sequence[Any]:
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        raise SignatureMismatch(
            f"Input {tensor.name[:80]!r} is {tensor.datatype[:40]!r}, which has no field of contents: send it in "
            "raw_input_contents."
        )
    others = [each.name for each, _ in content.ListFields() if each.name != field]
    if others:
        raise SignatureMismatch(
            f"Input {tensor.name[:80]!r} is {tensor.datatype}, but fills {others[0]}: fill {field} alone."
        )
    elements: Sequence[Any] = getattr(content, field)
    return elements
