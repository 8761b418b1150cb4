"""Models: upload, look up, and which variant answers for one."""

from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response

from app.api import examples
from app.api.dependencies import Resolving, Served, Services
from app.api.documentation import answers, form_body
from app.api.references import plain_reference
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
        came = await incoming(request, query=query.model_dump(), text=("name", "preprocessing"))
        upload = await _receive(services, came, undo=undo)
        await announce_model(services, upload, undo=undo)
        undo.pop_all()
    response.headers["Location"] = f"/v1/models/{upload.name}:{upload.version}"
    return ModelVersion.of(Entry(upload=upload))


async def _receive(services: Services, came: Incoming, *, undo: AsyncExitStack) -> Upload:
    text = came.fields.get("preprocessing")
    preprocessing = None if text is None else parse_preprocessing(text)
    name = came.fields.get("name")
    upload = await receive(services, services.models, came.file, name=name, preprocessing=preprocessing, undo=undo)
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
    return ModelList(models=[ModelVersion.of(versions[-1]) for versions in newest if versions])


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
    """Return the route in force and every decision before it."""
    history = await services.routing.history(check_name(model))
    return RoutingState(current=history[-1] if history else await _unrouted(services, model), history=history)


@router.put(
    "/v1/models/{model}/routing",
    summary="Choose which variant answers",
    responses=answers(examples.ROUTE, errors=(404, 409, 413, 503)),
)
async def put_routing(
    model: str,
    chosen: Annotated[RouteRequest, Body(examples=[examples.ROUTE_REQUEST])],
    services: Served,
    resolver: Resolving,
) -> Route:
    """Let a published variant answer whenever a caller names none; in force everywhere within a second."""
    entry = await services.models.get(check_name(model), chosen.version)
    entry.ready()
    variant = await services.variants.get(model, chosen.version, check_name(chosen.variant, of="variant"))
    route = await services.routing.choose(model, version=variant.version, variant=variant.name)
    resolver.forget()
    return route


async def _unrouted(services: Services, model: str) -> Route:
    manifest = (await services.models.resolve(Reference(name=model))).ready()
    return Route(number=0, model=model, version=manifest.version, variant=FLOAT32, created_at=manifest.imported_at)
