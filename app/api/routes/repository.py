"""The Open Inference Protocol's repository and statistics extensions: what is loaded, and how it fares."""

from typing import TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError

from app.api import examples
from app.api.dependencies import Served, Services
from app.api.documentation import answers, inlined, json_body
from app.api.intake import Bound, read_bounded
from app.api.loading import load_all, reason_unloaded, unload_all
from app.api.model_paths import reference_in
from app.api.schemas.repository import (
    IndexedModel,
    IndexedVariant,
    IndexRequest,
    LoadRequest,
    Statistics,
    UnloadRequest,
)
from app.api.statistics import is_meant, model_statistics
from app.api.strictness import MOST_JSON_BYTES, StrictRoute
from app.api.validation import explain
from app.catalogue.shelf import Entry
from app.domain.errors import RequestInvalid
from app.domain.models import ModelManifest
from app.domain.names import Reference

router = APIRouter(route_class=StrictRoute)

_MODEL = (404, 409, 503)

Body = TypeVar("Body", bound=BaseModel)


@router.post(
    "/repository/index",
    summary="List what can be loaded",
    responses=answers([examples.INDEXED], errors=(503,)),
    openapi_extra=json_body(inlined(IndexRequest), {"ready": True}, required=False),
)
async def index(request: Request, services: Served) -> list[IndexedModel]:
    """List every version of every model, and whether a runner holds it now."""
    asked = await _read(request, services, IndexRequest)
    loaded = {(each.model, each.version, each.variant) for each in await services.pool.statistics()}
    entries = [entry for name in await services.models.names() for entry in await services.models.versions(name)]
    listed = [await _indexed(services, entry, loaded) for entry in entries]
    return [each for each in listed if each.state == "READY" or not asked.ready]


@router.post(
    "/repository/models/{model}/load",
    summary="Load a model",
    responses=answers({}, errors=_MODEL),
    openapi_extra=json_body(inlined(LoadRequest), examples.LOAD, required=False),
)
async def load(model: str, request: Request, services: Served) -> dict[str, str]:
    """Start the runners of who answers for `{model}` now, with what is pinned of them.

    `{model}` may be `name:version@variant`; where weights decide, every variant that has any is loaded.
    """
    knobs = (await _read(request, services, LoadRequest)).knobs()
    await load_all(services, reference_in(model), knobs=knobs)
    return {}


@router.post(
    "/repository/models/{model}/unload",
    summary="Unload a model",
    responses=answers({}, errors=_MODEL),
    openapi_extra=json_body(inlined(UnloadRequest), {"parameters": {"unload_dependents": False}}, required=False),
)
async def unload(model: str, request: Request, services: Served) -> dict[str, str]:
    """Stop the runners of who answers for `{model}`, once their requests are answered.

    The next request starts them again.
    """
    await _read(request, services, UnloadRequest)
    await unload_all(services, reference_in(model))
    return {}


@router.get(
    "/models/stats",
    summary="Read the statistics of all models",
    response_model=Statistics,
    responses=answers(examples.STATISTICS, errors=(503,)),
)
async def all_statistics(services: Served) -> Response:
    """Return what every runner has done since it started, as of a second ago; a model of this name is at `stats:1`."""
    return _statistics(model_statistics(await services.recent_statistics.told(services.pool.statistics), idle=()))


@router.get(
    "/models/{model}/stats",
    summary="Read a model's statistics",
    response_model=Statistics,
    responses=answers(examples.STATISTICS, errors=_MODEL),
)
async def model_stats(model: str, services: Served) -> Response:
    """Return what a model's runners have done since they started, for each version that is loaded."""
    return await _statistics_of(services, reference_in(model))


@router.get(
    "/models/{model}/versions/{version}/stats",
    summary="Read the statistics of a version of a model",
    response_model=Statistics,
    responses=answers(examples.STATISTICS, errors=_MODEL),
)
async def version_stats(model: str, version: str, services: Served) -> Response:
    """Return what the runners of one version of a model have done since they started."""
    return await _statistics_of(services, reference_in(model, version))


async def _read(request: Request, services: Services, model: type[Body]) -> Body:
    """Read a body that may be left out."""
    seconds, advice = services.limits.body_timeout_seconds, "send less than that"
    data = await read_bounded(request, Bound(most_bytes=MOST_JSON_BYTES, advice=advice, seconds=seconds))
    try:
        return model.model_validate_json(bytes(data) or b"{}")
    except ValidationError as error:
        raise RequestInvalid(explain(error.errors(), of="request", allowed=_allowed(model))) from error


def _allowed(model: type[BaseModel]) -> list[str]:
    """Return what may stand in a request's parameters, or in the request if it has none."""
    parameters = model.model_fields.get("parameters")
    inner = parameters.annotation if parameters is not None else None
    fields = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    return list(fields.model_fields)


async def _indexed(services: Services, entry: Entry[ModelManifest], loaded: set[tuple[str, int, str]]) -> IndexedModel:
    name, version = entry.upload.name, entry.upload.version
    variants = [] if entry.manifest is None else await services.variants.list(name, version)
    listed = [
        IndexedVariant(name=each.name, state="READY" if (name, version, each.name) in loaded else "UNAVAILABLE")
        for each in variants
    ]
    ready = any(each.state == "READY" for each in listed)
    return IndexedModel(
        name=name,
        version=str(version),
        state="READY" if ready else "UNAVAILABLE",
        reason="" if ready else reason_unloaded(entry),
        octet_variants=listed,
    )


async def _statistics_of(services: Services, reference: Reference) -> Response:
    manifest = (await services.routing.resolve(reference)).manifest
    told = await services.recent_statistics.told(services.pool.statistics)
    runners = [each for each in told if is_meant(reference, each)]
    return _statistics(model_statistics(runners, idle=[(manifest.name, manifest.version)]))


def _statistics(entries: object) -> Response:
    return Response(orjson.dumps({"model_stats": entries}), media_type="application/json")
