"""Predictions: JSON, NumPy's files or an image in; JSON or NumPy's files out."""

import time
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from app.api import examples
from app.api.arrays import listed, to_npy, to_npz
from app.api.bodies import IMAGES, NPY, NPZ, read_prediction
from app.api.dependencies import Resolving, Served, Services
from app.api.documentation import answers, json_body
from app.api.predictions import Prediction, predict, reference_of
from app.api.resolution import Resolver
from app.api.schemas.inference import PredictAnswer
from app.api.strictness import StrictRoute
from app.domain.errors import RequestInvalid

router = APIRouter(tags=["inference"], route_class=StrictRoute)

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
    request: Request, services: Served, resolver: Resolving, model: str | None = None, variant: str | None = None
) -> Response:
    """Answer with the variant that `model` and `variant` name, as parameters or as members of a JSON body."""
    return await _predict(request, services, resolver, model=model, variant=variant)


@router.post(
    "/v1/models/{model}/predict",
    summary="Predict with one model",
    response_model=PredictAnswer,
    responses=answers(examples.PREDICTION, errors=_ERRORS),
    openapi_extra=_BODY,
)
async def predict_one(
    model: str, request: Request, services: Served, resolver: Resolving, variant: str | None = None
) -> Response:
    """Answer with one model's variant: the one asked for, else the one that its routing names."""
    return await _predict(request, services, resolver, model=model, variant=variant)


async def _predict(
    request: Request, services: Services, resolver: Resolver, *, model: str | None, variant: str | None
) -> Response:
    began = time.perf_counter()
    with services.instruments.requests_in_flight.track_inprogress(), services.intake.held() as held:
        body = await read_prediction(request, limits=services.limits, held=held)
        reference = reference_of(_one("model", model, body.model), _one("variant", variant, body.variant))
        made = await predict(services, resolver, reference, parse=body.parse, began=began)
    accept = request.headers.get("accept", "")
    return _answer(made, accept=accept, most_json_bytes=services.limits.max_json_bytes)


def _one(what: str, address: str | None, body: str | None) -> str | None:
    """Return what the address or a JSON body says; both may, if they say the same."""
    if address is not None and body is not None and address != body:
        raise RequestInvalid(f"The address asks for {what} {address[:80]!r}, the body for {body[:80]!r}: pick one.")
    return body if address is None else address


def _answer(made: Prediction, *, accept: str, most_json_bytes: int) -> Response:
    headers = {
        "Octet-Model": made.variant.model,
        "Octet-Version": str(made.variant.version),
        "Octet-Variant": made.variant.name,
        "Octet-Queue-Ms": f"{made.queue_seconds * 1000:.3f}",
        "Octet-Compute-Ms": f"{made.compute_seconds * 1000:.3f}",
    }
    if NPY in accept:
        return Response(to_npy(next(iter(made.outputs.values()))), media_type=NPY, headers=headers)
    if NPZ in accept:
        return Response(to_npz(made.outputs), media_type=NPZ, headers=headers)
    data = listed(made.outputs, limit=most_json_bytes)
    body = orjson.dumps(_members(made, data), option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json", headers=headers)


def _members(made: Prediction, data: Mapping[str, object]) -> dict[str, Any]:
    return {
        "model": made.variant.model,
        "version": made.variant.version,
        "variant": made.variant.name,
        "outputs": {
            name: {"dtype": array.dtype.name, "shape": list(array.shape), "data": data[name]}
            for name, array in made.outputs.items()
        },
        "queue_ms": round(made.queue_seconds * 1000, 3),
        "compute_ms": round(made.compute_seconds * 1000, 3),
    }
