"""Models: upload, look up, and which variant answers for one."""

from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response

from app.api import examples
from app.api.dependencies import Resolving, Served, Services
from app.api.documentation import answers, form_body
from app.api.labels import LABELS, parse_labels
from app.api.references import bare_name, plain_reference
from app.api.schemas.catalogue import ModelList, ModelUploadQuery, ModelVersion, RouteRequest, RoutingState
from app.api.schemas.recipes import parse_preprocessing
from app.api.strictness import StrictRoute
from app.api.uploads import Incoming, announce_model, check_length, incoming, receive
from app.catalogue.shelf import Entry
from app.domain.models import Upload
from app.domain.names import Reference, check_name
from app.domain.routing import Route
from app.domain.variants import FLOAT32

router = APIRouter(tags=["catalogue"], route_class=StrictRoute)

_FORM = form_body(
    examples.MODEL_FORM,
    text={
        "name": "The model's name; else the file's.",
        "preprocessing": "How an image becomes its input, as JSON.",
        "labels": "What its classes are called: a JSON list, or a file with a name on each line.",
    },
    files={"file": "A `.pt2`, an `.onnx`, or a `.zip` of an `.onnx` with its external data."},
    required=["file"],
    raw=True,
)


@router.post(
    "/v1/models",
    summary="Upload a model",
    status_code=201,
    response_model=ModelVersion,
    responses=answers(examples.UPLOADED_MODEL, status=201, errors=(413, 503)),
    openapi_extra=_FORM,
)
async def upload_model(
    request: Request,
    response: Response,
    services: Served,
    query: Annotated[ModelUploadQuery, Query()],
) -> ModelVersion:
    """Stream a model to the store, as a form or as the raw body with its fields in the query; then import it."""
    check_length(request, limit=services.limits.max_upload_bytes)
    await services.live.check()
    async with AsyncExitStack() as undo:
        came = await incoming(request, query=query.model_dump(), text=("name", "preprocessing", LABELS))
        upload = await _receive(services, came, undo=undo)
        await announce_model(services, upload, undo=undo)
        undo.pop_all()
    response.headers["Location"] = f"/v1/models/{upload.name}:{upload.version}"
    return ModelVersion.of(Entry(upload=upload))


async def _receive(services: Services, came: Incoming, *, undo: AsyncExitStack) -> Upload:
    text = came.fields.get("preprocessing")
    preprocessing = None if text is None else parse_preprocessing(text)
    upload = await receive(
        services,
        services.models,
        came.file,
        name=came.fields.get("name"),
        preprocessing=preprocessing,
        labels=parse_labels(came.fields.get(LABELS)),
        undo=undo,
    )
    await came.finish()
    return upload


@router.get(
    "/v1/models",
    summary="List the newest version of every model",
    responses=answers({"models": [examples.MODEL]}, errors=(503,)),
)
async def list_models(services: Served) -> ModelList:
    """List the newest version of every model, sorted by name."""
    newest = [await services.models.versions(name) for name in await services.models.names()]
    return ModelList(models=[ModelVersion.listed(versions[-1]) for versions in newest if versions])


@router.get("/v1/models/{model}", summary="Look up a model", responses=answers(examples.MODEL, errors=(404, 503)))
async def get_model(model: str, services: Served) -> ModelVersion:
    """Return `name:version`, or the newest ready version of `name`."""
    return ModelVersion.of(await services.models.resolve(plain_reference(model)))


@router.get(
    "/v1/models/{model}/routing",
    summary="See which variant answers",
    responses=answers(examples.ROUTING, errors=(404, 409, 503)),
)
async def get_routing(model: str, services: Served) -> RoutingState:
    """Return the route in force and every decision before it: who made it, when, and why if that was said."""
    history = await services.routing.history(bare_name(model))
    return RoutingState(current=history[-1] if history else await _unrouted(services, model), history=history)


@router.put(
    "/v1/models/{model}/routing",
    summary="Choose which variant answers",
    responses=answers(examples.ROUTE, errors=(404, 409, 413, 503)),
)
async def put_routing(
    *,
    model: str,
    chosen: Annotated[RouteRequest, Body(examples=[examples.ROUTE_REQUEST, examples.WEIGHTS_REQUEST])],
    request: Request,
    services: Served,
    resolver: Resolving,
    load: Annotated[bool, Query(description="Load the variants here before the route is in force.")] = True,
) -> Route:
    """Let a published variant answer whenever a caller names none, or several by weights.

    It is in force everywhere within a second. Variants are loaded first, so no request waits for them or fails.
    """
    route = _decided(bare_name(model), chosen, by=_address(request))
    (await services.models.get(model, route.version)).ready()
    found = {name: await services.variants.get(model, route.version, name) for name in chosen.weights or route.shares}
    if load:
        for name in route.shares:  # one after the other: neighbours answer meanwhile
            await services.pool.load(found[name])
    kept = await services.routing.record(route)
    resolver.forget()
    return kept


def _decided(model: str, chosen: RouteRequest, *, by: str) -> Route:
    if chosen.variant is not None:
        check_name(chosen.variant, of="variant")
    return Route(
        number=0,
        model=model,
        version=chosen.version,
        variant=chosen.variant,
        weights=chosen.weights,
        created_at=datetime.now(UTC),
        by=by if chosen.by is None else chosen.by,
        note=chosen.note,
    )


def _address(request: Request) -> str:
    return "unknown" if request.client is None else request.client.host


async def _unrouted(services: Services, model: str) -> Route:
    manifest = (await services.models.resolve(Reference(name=model))).ready()
    return Route(number=0, model=model, version=manifest.version, variant=FLOAT32, created_at=manifest.imported_at)
