"""An answer of the Open Inference Protocol: outputs in JSON, as bytes behind it, or as classes."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson
from fastapi import Response

from app.api.answers import Answered, headers_of, milliseconds
from app.api.arrays import Array, listed
from app.api.binary_tensors import BYTES, strings_section, to_section
from app.api.classification import CLASSIFICATION, classification_strings, wanted_classification
from app.api.infer_requests import HEADER_LENGTH, Output, Request
from app.domain.tensors import PROTOCOL_NAMES

OCTETS = "application/octet-stream"

_Section = bytes | memoryview


class Made(Answered, Protocol):
    """What a variant answered; bfloat16 outputs as float32."""

    @property
    def outputs(self) -> Mapping[str, Array]: ...


def infer_answer(request: Request, made: Made, *, labels: Sequence[str] | None, most_json_bytes: int) -> Response:
    """Write an answer as the request wants it.

    Args:
        labels: names of the classes, for outputs that are asked for as classes.
        most_json_bytes: of the outputs that go into JSON, as arrays.

    Raises:
        AnswerTooLarge: they are larger.
        RequestInvalid: an output that is asked for as classes has none.
    """
    wanted = request.outputs or [Output(name=name) for name in made.outputs]
    numbers = {each.name: made.outputs[each.name].reshape(-1) for each in wanted if _as_numbers(each, request)}
    data = listed(numbers, limit=most_json_bytes)
    written = [_written(each, request, made, data=data, labels=labels) for each in wanted]
    sections = [section for _, section in written if section is not None]
    members = _members(request, made, [entry for entry, _ in written])
    header = orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY)
    if not sections:
        return Response(header, media_type="application/json", headers=headers_of(made))
    headers = headers_of(made) | {HEADER_LENGTH: str(len(header))}
    return Response(b"".join((header, *sections)), media_type=OCTETS, headers=headers)


def _as_numbers(output: Output, request: Request) -> bool:
    """Whether an output goes into the JSON as a list of numbers."""
    return not _as_bytes(output, request) and output.parameters.classification is None


def _as_bytes(output: Output, request: Request) -> bool:
    asked = output.parameters.binary_data
    return request.parameters.binary_data_output if asked is None else asked


def _written(
    output: Output, request: Request, made: Made, *, data: Mapping[str, object], labels: Sequence[str] | None
) -> tuple[dict[str, Any], _Section | None]:
    """Return an output's entry in the JSON, and its bytes if it is wanted as such."""
    array, binary = made.outputs[output.name], _as_bytes(output, request)
    count = wanted_classification({CLASSIFICATION: output.parameters.classification})
    if count is not None:
        return _classes(output.name, classification_strings(array, k=count, labels=labels), binary=binary)
    dtype = next(spec.dtype for spec in made.variant.signature.outputs if spec.name == output.name)
    entry = {"name": output.name, "datatype": PROTOCOL_NAMES[dtype], "shape": list(array.shape)}
    if not binary:
        return {**entry, "data": data[output.name]}, None
    section = to_section(array, dtype)
    return {**entry, "parameters": {"binary_data_size": section.nbytes}}, section


def _classes(name: str, rows: Sequence[Sequence[str]], *, binary: bool) -> tuple[dict[str, Any], _Section | None]:
    entry = {"name": name, "datatype": BYTES, "shape": [len(rows), len(rows[0]) if rows else 0]}
    if not binary:
        return {**entry, "data": [text for row in rows for text in row]}, None
    section = strings_section(rows)
    return {**entry, "parameters": {"binary_data_size": len(section)}}, section


def _members(request: Request, made: Made, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "model_name": made.variant.model,
        "model_version": str(made.variant.version),
        "parameters": {
            "octet_variant": made.variant.name,
            "octet_queue_ms": milliseconds(made.queue_seconds),
            "octet_compute_ms": milliseconds(made.compute_seconds),
        },
        "outputs": entries,
    }
    return answer if request.id is None else {**answer, "id": request.id}
