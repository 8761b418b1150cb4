"""A prediction's body: read within its limit, then parsed into inputs once the variant's signature is known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson
from fastapi import Request

from app.api.arrays import Array, from_base64, from_nested, from_npy, from_npz
from app.domain.errors import RequestInvalid, SignatureMismatch, UnsupportedFormat, UploadTooLarge
from app.domain.tensors import Signature, TensorSpec
from app.serving.terms import Arrays, EncodedImage

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
IMAGES = ("image/jpeg", "image/png")
_MEMBERS = {"model", "variant", "inputs"}
_TENSOR_MEMBERS = {"dtype", "shape", "base64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """One prediction as it was sent.

    Attributes:
        model, variant: members of a JSON body that say what is to answer.
        parse: turns the content into inputs for a signature; raises what is wrong with it.
    """

    model: str | None = None
    variant: str | None = None
    parse: Callable[[Signature], Arrays | EncodedImage]


async def read_bounded(request: Request, *, limit: int, setting: str) -> bytes:
    """Read a body whole.

    Raises:
        UploadTooLarge: it is longer than `limit` bytes, the value of `setting`.
    """
    error = UploadTooLarge(f"The body is larger than {limit} bytes, the limit ({setting}).")
    if content_length(request) > limit:
        raise error
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise error
    return bytes(body)


def content_length(request: Request) -> int:
    """Return how many bytes the client announces, 0 if it does not say."""
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isdecimal() else 0


def media_type(request: Request) -> str:
    """Return the content type without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_prediction(request: Request, *, limit: int) -> Body:
    """Read a prediction's body.

    Raises:
        UnsupportedFormat: the content type is none that Octet reads.
        RequestInvalid, UploadTooLarge: it cannot be read.
    """
    kind = media_type(request)
    if kind not in (JSON, NPY, NPZ, *IMAGES):
        raise UnsupportedFormat(
            f"Content-Type {kind[:60]!r} cannot be predicted on: send {JSON}, {NPY}, {NPZ} or {' or '.join(IMAGES)}."
        )
    data = await read_bounded(request, limit=limit, setting="max_predict_bytes")
    if kind == JSON:
        return _json_body(read_json(data))
    if kind == NPY:
        return Body(parse=lambda signature: {_only_input(signature).name: from_npy(_only_input(signature).name, data)})
    if kind == NPZ:
        arrays = from_npz(data, limit=limit)
        return Body(parse=lambda _signature: arrays)
    return Body(parse=lambda _signature: EncodedImage(data=data))


def read_json(data: bytes) -> object:
    """Parse JSON.

    Raises:
        RequestInvalid: it is none; NaN and Infinity are not JSON either.
    """
    try:
        content: object = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RequestInvalid(f"The body is not valid JSON ({str(error)[:120]}).") from error
    return content


def _json_body(content: object) -> Body:
    if not isinstance(content, dict):
        return Body(parse=lambda signature: _inputs(content, signature))
    unknown = sorted(set(content) - _MEMBERS)
    if unknown:
        raise RequestInvalid(f"The body has an unknown field {unknown[0][:80]!r}: take model, variant and inputs.")
    if "inputs" not in content:
        raise RequestInvalid("The body lacks 'inputs': send the tensors by name, or a nested list for a single input.")
    return Body(
        model=_text(content, "model"),
        variant=_text(content, "variant"),
        parse=lambda signature: _inputs(content["inputs"], signature),
    )


def _text(content: Mapping[str, object], member: str) -> str | None:
    value = content.get(member)
    if value is not None and not isinstance(value, str):
        raise RequestInvalid(f"The member {member!r} must be text.")
    return value


def _inputs(content: object, signature: Signature) -> Arrays:
    if not isinstance(content, dict):
        spec = _only_input(signature)
        return {spec.name: _tensor(content, spec)}
    return {name: _tensor(value, signature.input(name)) for name, value in content.items()}


def _tensor(value: object, spec: TensorSpec) -> Array:
    if not isinstance(value, dict):
        return from_nested(value, spec)
    shape, dtype, text = value.get("shape"), value.get("dtype"), value.get("base64")
    whole = isinstance(shape, list) and all(isinstance(size, int) and not isinstance(size, bool) for size in shape)
    if set(value) != _TENSOR_MEMBERS or not whole or not isinstance(dtype, str) or not isinstance(text, str):
        raise RequestInvalid(f"Input {spec.name!r} must be a nested list, or have exactly dtype, shape and base64.")
    return from_base64(spec.name, dtype=dtype, shape=tuple(value["shape"]), text=text)


def _only_input(signature: Signature) -> TensorSpec:
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise SignatureMismatch(f"The model has {len(signature.inputs)} inputs ({names}): send each under its name.")
    return signature.inputs[0]
