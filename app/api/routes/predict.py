"""Predictions: JSON, NumPy's files or an image in; JSON or NumPy's files out."""

import time
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from app.api import examples
from app.api.answers import headers_of, milliseconds
from app.api.arrays import listed, to_npy, to_npz
from app.api.bodies import IMAGES, JSON, NPY, NPZ, aside, in_place_bytes, media_type, read_prediction
from app.api.classification import Class, TopK
from app.api.classification import top_k as highest
from app.api.compression import packed_for
from app.api.dependencies import Resolving, Served, Services
from app.api.documentation import answers, json_body
from app.api.intake import content_length
from app.api.outgoing import Outgoing
from app.api.predictions import Prediction, answer, predict, reference_of, room_for
from app.api.resolution import Resolver
from app.api.schemas.inference import PredictAnswer
from app.api.strictness import StrictRoute
from app.api.wishes import wishes_of
from app.domain.errors import RequestInvalid

router = APIRouter(tags=["inference"], route_class=StrictRoute)

_SHORT_BYTES = 64 * 1024  # of JSON, which is parsed sooner than it is asked whether there is time for it

Top = list[list[Class]]

_ERRORS = (404, 409, 413, 502, 503, 504)
_BODY = json_body(
    {"type": "object", "description": "Inputs by name; nested lists, or dtype, shape and base64."},
    examples.PREDICT,
    (NPY, "One array, for a model with one input."),
    (NPZ, "Arrays named as the inputs."),
    *((media, "An image, through the model's preprocessing.") for media in IMAGES),
)


@router.post(
    "/predict",
    summary="Predict",
    response_model=PredictAnswer,
    responses=answers(examples.PREDICTION, errors=_ERRORS),
    openapi_extra=_BODY,
)
async def predict_any(
    *,
    request: Request,
    services: Served,
    resolver: Resolving,
    model: str | None = None,
    variant: str | None = None,
    top_k: TopK = None,
) -> Response:
    """Answer with the variant that `model` and `variant` name, as parameters or as members of a JSON body."""
    return await predict_with(request, services, resolver, model=model, variant=variant, top_k=top_k)


@router.post(
    "/v1/models/{model}/predict",
    summary="Predict with one model",
    response_model=PredictAnswer,
    responses=answers(examples.PREDICTION, errors=_ERRORS),
    openapi_extra=_BODY,
)
async def predict_one(
    *,
    model: str,
    request: Request,
    services: Served,
    resolver: Resolving,
    variant: str | None = None,
    top_k: TopK = None,
) -> Response:
    """Answer with one model's variant: the one asked for, else the one that its routing names."""
    return await predict_with(request, services, resolver, model=model, variant=variant, top_k=top_k)


async def predict_with(
    request: Request,
    services: Services,
    resolver: Resolver,
    *,
    model: str | None,
    variant: str | None,
    top_k: int | None = None,
) -> Response:
    """Answer one request; `model`, `variant` and `top_k` are what its address says."""
    began, wishes = time.perf_counter(), wishes_of(request)
    accept = request.headers.get("accept", "")
    if top_k is not None and (NPY in accept or NPZ in accept):
        raise RequestInvalid("The highest classes come in JSON alone: leave out 'top_k' or the Accept header.")
    with services.instruments.requests_in_flight.track_inprogress(), services.intake.held() as held:
        if media_type(request) == JSON:  # its body says which model
            if model is not None and not 0 < content_length(request) <= _SHORT_BYTES:
                resolved = await resolver.resolve(reference_of(model, variant), affinity=wishes.affinity)
                with room_for(services, resolved, held=held, size_bytes=0, lead_bytes=0, wishes=wishes, began=began):
                    pass  # it is worth reading
            body = await read_prediction(request, limits=services.limits, held=held)
            reference = reference_of(_one("model", model, body.model), _one("variant", variant, body.variant))
            made = await predict(services, resolver, reference, parse=body.parse, held=held, began=began, wishes=wishes)
        else:
            resolved = await resolver.resolve(reference_of(model, variant), affinity=wishes.affinity)
            size = in_place_bytes(request)
            with room_for(
                services, resolved, held=held, size_bytes=size, lead_bytes=0, wishes=wishes, began=began
            ) as room:
                body = await read_prediction(request, limits=services.limits, held=held)
                made = await answer(services, resolved, parse=body.parse, began=began, wishes=wishes, room=room)
        top = None if top_k is None else await _top(made, top_k)
        said = _answer(made, top, accept=accept, most_json_bytes=services.limits.max_json_bytes)
        said = await packed_for(request, said)
        return Outgoing(said, held=held, seconds=services.limits.body_timeout_seconds)


def _one(what: str, address: str | None, body: str | None) -> str | None:
    """Return what the address or a JSON body says; both may, if they say the same."""
    if address is not None and body is not None and address != body:
        raise RequestInvalid(f"The address asks for {what} {address[:80]!r}, the body for {body[:80]!r}: pick one.")
    return body if address is None else address


async def _top(made: Prediction, count: int) -> Top:
    """Return the highest classes of the first output."""
    scores = next(iter(made.outputs.values()))
    return await aside(lambda: highest(scores, k=count, labels=made.labels), size_bytes=scores.nbytes)


def _answer(made: Prediction, top: Top | None, *, accept: str, most_json_bytes: int) -> Response:
    headers = headers_of(made)
    if NPY in accept:
        return Response(to_npy(next(iter(made.outputs.values()))), media_type=NPY, headers=headers)
    if NPZ in accept:
        return Response(to_npz(made.outputs), media_type=NPZ, headers=headers)
    data = listed(made.outputs, limit=most_json_bytes)
    body = orjson.dumps(_members(made, top, data), option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json", headers=headers)


def _members(made: Prediction, top: Top | None, data: Mapping[str, object]) -> dict[str, Any]:
    members = {
        "model": made.variant.model,
        "version": made.variant.version,
        "variant": made.variant.name,
        "outputs": {
            name: {"dtype": array.dtype.name, "shape": list(array.shape), "data": data[name]}
            for name, array in made.outputs.items()
        },
        "queue_ms": milliseconds(made.queue_seconds),
        "compute_ms": milliseconds(made.compute_seconds),
    }
    return members if top is None else {**members, "top": top}
