"""A request of the Open Inference Protocol, from its body to inputs. `app.api.schemas.inference` documents it."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from app.api.arrays import Array, count_elements, from_nested
from app.api.binary_tensors import (
    BYTES,
    DTYPES,
    Inputs,
    check_datatype,
    encoded_images,
    from_raw,
    from_section,
    means_pixels,
    split,
)
from app.api.read_json import read_json
from app.domain.errors import RequestInvalid, SignatureMismatch
from app.domain.serving import priority_of
from app.domain.tensors import DType, Signature, TensorSpec
from app.serving.terms import Pixels

HEADER_LENGTH = "Inference-Header-Content-Length"

_MICROSECONDS = 1e-6
_MOST_PRIORITY = 2**31 - 1
_LONGEST_LENGTH = 15  # digits


class InputParameters(msgspec.Struct, frozen=True):
    """What is known of an input's parameters; others are ignored."""

    binary_data_size: int | None = None
    shared_memory_region: object = None


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input tensor, in JSON or as `binary_data_size` bytes behind it."""

    name: str
    shape: list[int]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: object = None


class OutputParameters(msgspec.Struct, frozen=True):
    """What is known of an output's parameters; others are ignored."""

    binary_data: bool | None = None
    classification: object = None
    shared_memory_region: object = None


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class Parameters(msgspec.Struct, frozen=True):
    """What is known of a request's parameters; others are ignored."""

    binary_data_output: bool = False
    priority: int = 0
    timeout: int = 0


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of a request."""

    inputs: list[Input]
    id: str | None = None
    parameters: Parameters = Parameters()
    outputs: list[Output] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A whole request.

    Attributes:
        sections: the bytes of each input, None for one that comes in JSON.
        raw: a body that is the only input's bytes, without any JSON; `request` has no inputs then.
        json_bytes: of the body.
    """

    request: Request
    sections: Sequence[memoryview | None] = ()
    raw: memoryview | None = None
    json_bytes: int = 0

    @property
    def deadline_seconds(self) -> float | None:
        """How long the client waits; None if it does not say."""
        return self.request.parameters.timeout * _MICROSECONDS or None

    @property
    def priority(self) -> int:
        """Higher ones go first; 0 is the usual one."""
        return priority_of(self.request.parameters.priority)


def header_length(text: str | None, *, size_bytes: int) -> int | None:
    """Read `Inference-Header-Content-Length`; None if there is none, and the whole body is JSON.

    Raises:
        RequestInvalid: it is no whole number, or more than the body's length.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > _LONGEST_LENGTH or int(text) > size_bytes:
        raise RequestInvalid(
            f"{HEADER_LENGTH} is {text[:40]!r}, but the body has {size_bytes} bytes: send the length of the JSON at "
            "its beginning."
        )
    return int(text)


def read_request(body: bytes | memoryview, *, json_bytes: int | None) -> Asked:
    """Read a body: JSON of so many bytes, and behind it the bytes of inputs that do not come in JSON.

    Args:
        json_bytes: None if all of it is JSON, 0 if it is one input's bytes alone.

    Raises:
        RequestInvalid, SignatureMismatch: it is not what the protocol says.
    """
    view = memoryview(body)
    if json_bytes == 0:
        return Asked(request=Request(inputs=[], parameters=Parameters(binary_data_output=True)), raw=view)
    end = len(view) if json_bytes is None else json_bytes
    request = _converted(read_json(view[:end]))
    _check(request)
    return Asked(request=request, sections=_sections(request, view[end:]), json_bytes=end)


def _converted(content: object) -> Request:
    try:
        return msgspec.convert(content, Request)
    except msgspec.ValidationError as error:
        raise RequestInvalid(f"The request is not valid ({str(error)[:200]}): see /docs for what is known.") from error


def _check(request: Request) -> None:
    if not request.inputs:
        raise RequestInvalid("The request has no inputs: send at least one.")
    names = [tensor.name for tensor in request.inputs]
    if len(set(names)) != len(names):
        raise SignatureMismatch("The request sends an input twice: send each once.")
    wanted = [output.name for output in request.outputs or ()]
    if len(set(wanted)) != len(wanted):
        raise SignatureMismatch("The request asks for an output twice: ask for each once.")
    if not 0 <= request.parameters.priority <= _MOST_PRIORITY or request.parameters.timeout < 0:
        raise RequestInvalid(
            f"The parameters priority and timeout (microseconds) may not be negative, and priority is at most "
            f"{_MOST_PRIORITY}: send them so."
        )
    regions = [each.parameters.shared_memory_region for each in (*request.inputs, *(request.outputs or ()))]
    if any(region is not None for region in regions):
        raise RequestInvalid(
            "A shared_memory_region cannot be read: send tensors in the body, and take them from there."
        )


def _sections(request: Request, rest: memoryview) -> Sequence[memoryview | None]:
    sizes = [(each.name, each.parameters.binary_data_size) for each in request.inputs]
    for tensor, (name, size) in zip(request.inputs, sizes, strict=True):
        if (size is None) == (tensor.data is None):
            raise RequestInvalid(f"Input {name[:80]!r} needs either data or a binary_data_size: send one of them.")
        if size is not None and size < 0:
            raise SignatureMismatch(
                f"Input {name[:80]!r} has a binary_data_size of {size}: send how many bytes it has."
            )
    found = iter(split(rest, [(name, size) for name, size in sizes if size is not None]))
    return [None if size is None else next(found) for _, size in sizes]


def inputs_of(asked: Asked, signature: Signature) -> Inputs:
    """Turn a request into a model's inputs.

    Raises:
        SignatureMismatch, RequestInvalid, BatchTooLarge: it does not fit.
    """
    _check_outputs(asked.request, signature)
    if asked.raw is not None:
        return from_raw(signature, asked.raw)
    pairs = list(zip(asked.request.inputs, asked.sections, strict=True))
    if len(pairs) == 1 and len(signature.inputs) == 1:
        images = _images(*pairs[0], signature.input(pairs[0][0].name))
        if images is not None:
            return images
    return {tensor.name: _array(tensor, section, signature.input(tensor.name)) for tensor, section in pairs}


def _check_outputs(request: Request, signature: Signature) -> None:
    known = {spec.name for spec in signature.outputs}
    for output in request.outputs or ():
        if output.name not in known:
            raise SignatureMismatch(f"The model has no output {output.name[:80]!r}: it has {', '.join(sorted(known))}.")


def _images(tensor: Input, section: memoryview | None, spec: TensorSpec) -> Inputs | None:
    """Read images for the model's preprocessing, if that is what was sent."""
    if tensor.datatype == BYTES:
        if section is None:
            raise SignatureMismatch(
                f"Input {spec.name!r} is BYTES in JSON, where no image can be: send images as binary data "
                "(binary_data_size), or one as image/jpeg or image/png to /predict."
            )
        return encoded_images(spec.name, section, shape=tensor.shape)
    dtype = DTYPES.get(tensor.datatype)
    if dtype is DType.UINT8 and means_pixels(spec, dtype=dtype, shape=tensor.shape):
        pixels = TensorSpec(name=spec.name, dtype=DType.UINT8, shape=(None,) * len(tensor.shape))
        return Pixels(data=_array(tensor, section, pixels))
    return None


def _array(tensor: Input, section: memoryview | None, spec: TensorSpec) -> Array:
    if section is not None:
        return from_section(spec, section, datatype=tensor.datatype, shape=tensor.shape)
    check_datatype(spec, tensor.datatype)
    array = from_nested(tensor.data, spec)
    shape = tuple(tensor.shape)
    if array.size != count_elements(spec.name, shape):
        raise SignatureMismatch(f"Input {spec.name!r} has {array.size} numbers, but its shape is {list(shape)}.")
    if array.ndim != 1 and array.shape != shape:
        raise SignatureMismatch(f"Input {spec.name!r} has data of shape {list(array.shape)}, but says {list(shape)}.")
    return array.reshape(shape)
