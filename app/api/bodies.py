"""A prediction's body: read within its limits, then parsed into inputs once the variant's signature is known."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from fastapi import Request

from app.api.arrays import Array, from_base64, from_nested, from_npy, from_npz, npz_size
from app.api.binary_tensors import Inputs, only_input, pixels_or_array
from app.api.compression import Room, content_coding, unpacked
from app.api.dependencies import RequestLimits
from app.api.infer_requests import HEADER_LENGTH, Asked, header_length, read_request
from app.api.intake import Bound, Held, content_length, read_bounded
from app.api.read_json import read_json
from app.domain.errors import RequestInvalid, UnsupportedFormat, UploadTooLarge
from app.domain.tensors import Signature, TensorSpec
from app.serving.terms import EncodedImages

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
IMAGES = ("image/jpeg", "image/png")
_FEWER_ROWS = "send fewer rows, or raise OCTET_MAX_PREDICT_BYTES"
_NO_JSON = "send arrays as .npy, .npz or binary tensors, which may be larger, fewer rows, or raise OCTET_MAX_JSON_BYTES"
_JSON_WEIGHT = 8  # a number of JSON takes about so many times its bytes in memory
_LARGE_BYTES = 256 * 1024
_MEMBERS = {"model", "variant", "inputs"}
_TENSOR_MEMBERS = {"dtype", "shape", "base64"}

Made = TypeVar("Made")
Parse = Callable[[Signature], Awaitable[Inputs]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """One prediction as it was sent.

    Attributes:
        model, variant: members of a JSON body that say what is to answer.
        parse: turns the content into inputs for a signature; raises what is wrong with it.
    """

    model: str | None = None
    variant: str | None = None
    parse: Parse


def media_type(request: Request) -> str:
    """Return the content type without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_prediction(request: Request, *, limits: RequestLimits, held: Held) -> Body:
    """Read a prediction's body.

    Raises:
        UnsupportedFormat: the content type, or the way it is packed, is none that Octet reads.
        RequestInvalid, UploadTooLarge: it cannot be read.
        QueueFull: the process holds too many bytes already.
    """
    kind = media_type(request)
    if kind not in (JSON, NPY, NPZ, *IMAGES):
        raise UnsupportedFormat(
            f"Content-Type {kind[:60]!r} cannot be predicted on: send {JSON}, {NPY}, {NPZ} or {' or '.join(IMAGES)}."
        )
    if kind == JSON:
        text = await _received_text(request, limits, held)
        return _json_body(await aside(lambda: read_json(text), size_bytes=len(text)), size_bytes=len(text))
    data = await _received(request, limits, held)
    if kind == NPY:  # one in Fortran's order or a foreign byte order is copied
        return Body(parse=_aside(lambda signature: _single(data, signature), size_bytes=len(data)))
    if kind == NPZ:
        return _npz_body(data, limit=limits.max_predict_bytes, held=held)
    return Body(parse=_aside(lambda _signature: EncodedImages(images=(data,)), size_bytes=0))


async def read_inference(request: Request, *, limits: RequestLimits, held: Held) -> Asked:
    """Read a request of the Open Inference Protocol: JSON, or JSON and bytes, or bytes.

    Raises:
        UnsupportedFormat: it is packed in a way that Octet does not know.
        RequestInvalid, SignatureMismatch, UploadTooLarge: it cannot be read.
        QueueFull: the process holds too many bytes already.
    """
    length = request.headers.get(HEADER_LENGTH)
    if length is None:
        text = await _received_text(request, limits, held)
        return await aside(lambda: read_request(text, json_bytes=None), size_bytes=len(text))
    body = await _received(request, limits, held)
    json_bytes = header_length(length, size_bytes=len(body)) or 0
    if json_bytes > limits.max_json_bytes:
        raise UploadTooLarge(f"The request's JSON is larger than {limits.max_json_bytes} bytes, the limit: {_NO_JSON}.")
    held.add((_JSON_WEIGHT - 1) * json_bytes)
    return await aside(lambda: read_request(body, json_bytes=json_bytes), size_bytes=json_bytes)


def in_place_bytes(request: Request) -> int:
    """Return how long a body is that brings tensors or an image as their bytes; 0 for JSON and whatever is packed."""
    plain = HEADER_LENGTH in request.headers or media_type(request) in (NPY, *IMAGES)
    return content_length(request) if plain and content_coding(request) is None else 0


async def _received(request: Request, limits: RequestLimits, held: Held) -> bytes | memoryview:
    """Read a body that is mostly tensors: in place, if there is room, or unpacked, if it is packed."""
    bound = Bound(most_bytes=limits.max_predict_bytes, advice=_FEWER_ROWS, seconds=limits.body_timeout_seconds)
    coding = content_coding(request)
    data = await read_bounded(request, bound, count=held.add, into=held.room if coding is None else None)
    return data if coding is None else await _unpacked(data, coding, bound, count=held.add)


async def _received_text(request: Request, limits: RequestLimits, held: Held) -> bytes | memoryview:
    """Read a body of JSON; it counts for what its numbers will take in memory."""
    most_bytes = min(limits.max_json_bytes, limits.max_predict_bytes)
    advice = _NO_JSON if most_bytes == limits.max_json_bytes else _FEWER_ROWS
    bound = Bound(most_bytes=most_bytes, advice=advice, seconds=limits.body_timeout_seconds)
    coding = content_coding(request)
    if coding is None:
        room = np.empty(min(content_length(request), most_bytes), np.uint8).data  # memory only as it is written
        return await read_bounded(request, bound, count=lambda count: held.add(_JSON_WEIGHT * count), into=room)
    packed = await read_bounded(request, bound, count=held.add)
    return await _unpacked(packed, coding, bound, count=lambda count: held.add(_JSON_WEIGHT * count))


async def _unpacked(
    packed: bytes | memoryview, coding: str, bound: Bound, *, count: Callable[[int], None]
) -> bytes | memoryview:
    room = Room(most_bytes=bound.most_bytes, advice=bound.advice, count=count)
    return await unpacked(packed, coding=coding, room=room)


def _npz_body(data: bytes | memoryview, *, limit: int, held: Held) -> Body:
    """A packed body counts for what it unpacks to."""
    size = min(npz_size(data), limit)
    held.add(size)
    return Body(parse=_aside(lambda _signature: from_npz(data, limit=limit), size_bytes=size))


async def aside(call: Callable[[], Made], *, size_bytes: int) -> Made:
    """Work on so many bytes in a thread, if they are many: other requests go on where NumPy or zlib let them.

    JSON does not: it is parsed while all wait, which is why `OCTET_MAX_JSON_BYTES` is small.
    """
    return await asyncio.to_thread(call) if size_bytes > _LARGE_BYTES else call()


def _aside(parse: Callable[[Signature], Inputs], *, size_bytes: int) -> Parse:
    return lambda signature: aside(lambda: parse(signature), size_bytes=size_bytes)


def _json_body(content: object, *, size_bytes: int) -> Body:
    if not isinstance(content, dict):
        return Body(parse=_aside(lambda signature: _inputs(content, signature), size_bytes=size_bytes))
    unknown = sorted(set(content) - _MEMBERS)
    if unknown:
        raise RequestInvalid(f"The body has an unknown field {unknown[0][:80]!r}: take model, variant and inputs.")
    if "inputs" not in content:
        raise RequestInvalid("The body lacks 'inputs': send the tensors by name, or a nested list for a single input.")
    return Body(
        model=_text(content, "model"),
        variant=_text(content, "variant"),
        parse=_aside(lambda signature: _inputs(content["inputs"], signature), size_bytes=size_bytes),
    )


def _text(content: Mapping[str, object], member: str) -> str | None:
    value = content.get(member)
    if value is not None and not isinstance(value, str):
        raise RequestInvalid(f'The member {member!r} is no text: send it as a string, such as "resnet20".')
    return value


def _inputs(content: object, signature: Signature) -> Inputs:
    if not isinstance(content, dict):
        spec = only_input(signature)
        return {spec.name: _tensor(content, spec)}
    if len(content) != 1:
        return {name: _tensor(value, signature.input(name)) for name, value in content.items()}
    name, value = next(iter(content.items()))
    spec = signature.input(name)
    return pixels_or_array(signature, spec, _tensor(value, spec))


def _tensor(value: object, spec: TensorSpec) -> Array:
    if not isinstance(value, dict):
        return from_nested(value, spec)
    shape, dtype, text = value.get("shape"), value.get("dtype"), value.get("base64")
    whole = isinstance(shape, list) and all(isinstance(size, int) and not isinstance(size, bool) for size in shape)
    if set(value) != _TENSOR_MEMBERS or not whole or not isinstance(dtype, str) or not isinstance(text, str):
        raise RequestInvalid(f"Input {spec.name!r} must be a nested list, or have exactly dtype, shape and base64.")
    return from_base64(spec.name, dtype=dtype, shape=tuple(value["shape"]), text=text)


def _single(data: bytes | memoryview, signature: Signature) -> Inputs:
    spec = only_input(signature)
    return pixels_or_array(signature, spec, from_npy(spec.name, data))
