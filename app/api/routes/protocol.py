"""The Open Inference Protocol, version 2: health, metadata and inference, in JSON and in binary tensors."""

import time
from dataclasses import replace

from fastapi import APIRouter, Request, Response

from app import __version__
from app.api import examples
from app.api.binary_tensors import Inputs
from app.api.bodies import aside, in_place_bytes, read_inference
from app.api.compression import packed_for
from app.api.dependencies import Resolving, Served, Services
from app.api.documentation import answers, inlined, json_body
from app.api.infer_answers import OCTETS, infer_answer
from app.api.infer_requests import HEADER_LENGTH, Asked, inputs_of
from app.api.model_paths import reference_in
from app.api.outgoing import Outgoing
from app.api.predictions import Wishes, answer, room_for
from app.api.resolution import Resolver
from app.api.routes import repository
from app.api.schemas.inference import (
    InferAnswer,
    InferRequest,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    TensorMetadata,
)
from app.api.strictness import StrictRoute
from app.api.wishes import wishes_of
from app.domain.names import Reference
from app.domain.tensors import PROTOCOL_NAMES, Signature, TensorSpec

router = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=StrictRoute)
router.include_router(repository.router)  # before /models/{model}, which would take /models/stats for a model

_MODEL = (404, 409, 503)
_INFER = (404, 409, 413, 502, 503, 504)
_BODY = json_body(
    inlined(InferRequest),
    examples.INFER,
    (OCTETS, "JSON of Inference-Header-Content-Length bytes, then the inputs' bytes; or, with 0, one input's alone."),
)
_LONGEST_LENGTH = 15
EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "schedule_policy", "statistics")


@router.get("", summary="Describe the server", responses=answers(examples.SERVER_METADATA))
async def server() -> ServerMetadata:
    """Return the server's name and version."""
    return ServerMetadata(name="octet", version=__version__, extensions=list(EXTENSIONS))


@router.get("/health/live", summary="Is the server alive?", responses=answers({"live": True}))
async def live() -> Live:
    """Answer as long as the process runs."""
    return Live(live=True)


@router.get("/health/ready", summary="Is the server ready?", responses=answers({"ready": True}, errors=(503,)))
async def ready(services: Served) -> Ready:
    """Answer as long as predictions can be answered: the store is there."""
    await services.store.check()
    return Ready(ready=True)


@router.get("/models/{model}", summary="Describe a model", responses=answers(examples.MODEL_METADATA, errors=_MODEL))
async def model_metadata(model: str, services: Served, resolver: Resolving) -> ModelMetadata:
    """Return a model's tensors; `{model}` may be `name@variant`."""
    return await _metadata(services, resolver, reference_in(model))


@router.get(
    "/models/{model}/versions/{version}",
    summary="Describe a version of a model",
    responses=answers(examples.MODEL_METADATA, errors=_MODEL),
)
async def version_metadata(model: str, version: str, services: Served, resolver: Resolving) -> ModelMetadata:
    """Return the tensors of one version of a model."""
    return await _metadata(services, resolver, reference_in(model, version))


@router.get(
    "/models/{model}/ready",
    summary="Is a model ready?",
    responses=answers({"name": "resnet20", "ready": True}, errors=_MODEL),
)
async def model_ready(model: str, resolver: Resolving) -> ModelReady:
    """Answer if the model can: what is not loaded is loaded by the first request."""
    return await _ready(resolver, reference_in(model))


@router.get(
    "/models/{model}/versions/{version}/ready",
    summary="Is a version of a model ready?",
    responses=answers({"name": "resnet20", "ready": True}, errors=_MODEL),
)
async def version_ready(model: str, version: str, resolver: Resolving) -> ModelReady:
    """Answer if one version of a model can."""
    return await _ready(resolver, reference_in(model, version))


@router.post(
    "/models/{model}/infer",
    summary="Infer",
    response_model=InferAnswer,
    responses=answers(examples.INFERENCE, errors=_INFER),
    openapi_extra=_BODY,
)
async def infer(model: str, request: Request, services: Served, resolver: Resolving) -> Response:
    """Answer with a model's variant; `{model}` may be `name@variant`."""
    return await infer_with(request, services, resolver, reference_in(model))


@router.post(
    "/models/{model}/versions/{version}/infer",
    summary="Infer with a version of a model",
    response_model=InferAnswer,
    responses=answers(examples.INFERENCE, errors=_INFER),
    openapi_extra=_BODY,
)
async def infer_version(model: str, version: str, request: Request, services: Served, resolver: Resolving) -> Response:
    """Answer with one version of a model."""
    return await infer_with(request, services, resolver, reference_in(model, version))


async def _ready(resolver: Resolver, reference: Reference) -> ModelReady:
    resolved = await resolver.resolve(reference)
    return ModelReady(name=resolved.variant.model, ready=True)


async def _metadata(services: Services, resolver: Resolver, reference: Reference) -> ModelMetadata:
    variant = (await resolver.resolve(reference)).variant
    versions = await services.models.versions(variant.model)
    return ModelMetadata(
        name=variant.model,
        versions=[str(entry.upload.version) for entry in versions if entry.manifest is not None],
        platform=f"{variant.execution.engine}_onnx",
        inputs=[_described(spec) for spec in variant.signature.inputs],
        outputs=[_described(spec) for spec in variant.signature.outputs],
        properties={} if variant.max_batch_size is None else {"max_batch_size": str(variant.max_batch_size)},
    )


def _described(spec: TensorSpec) -> TensorMetadata:
    shape = [-1 if size is None else size for size in spec.shape]
    return TensorMetadata(name=spec.name, datatype=PROTOCOL_NAMES[spec.dtype], shape=shape)


async def infer_with(request: Request, services: Services, resolver: Resolver, reference: Reference) -> Response:
    """Answer one request with what `reference` means."""
    began, wishes = time.perf_counter(), wishes_of(request)
    with services.instruments.requests_in_flight.track_inprogress(), services.intake.held() as held:
        resolved = await resolver.resolve(reference, affinity=wishes.affinity)
        size, lead = in_place_bytes(request), _lead_bytes(request)
        with room_for(
            services, resolved, held=held, size_bytes=size, lead_bytes=lead, wishes=wishes, began=began
        ) as room:
            asked = await read_inference(request, limits=services.limits, held=held)
            wishes = replace(wishes, priority=asked.priority, timeout_seconds=_shorter(wishes, asked))

            async def parse(signature: Signature) -> Inputs:
                return await aside(lambda: inputs_of(asked, signature), size_bytes=asked.json_bytes)

            made = await answer(services, resolved, parse=parse, began=began, wishes=wishes, room=room)
        said = infer_answer(asked.request, made, labels=made.labels, most_json_bytes=services.limits.max_json_bytes)
        said = await packed_for(request, said)
        return Outgoing(said, held=held, seconds=services.limits.body_timeout_seconds)


def _shorter(wishes: Wishes, asked: Asked) -> float | None:
    known = [seconds for seconds in (wishes.timeout_seconds, asked.deadline_seconds) if seconds is not None]
    return min(known, default=None)


def _lead_bytes(request: Request) -> int:
    """Return how long the JSON before the tensors is, so that these come to lie at a good address."""
    text = request.headers.get(HEADER_LENGTH, "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _LONGEST_LENGTH else 0
