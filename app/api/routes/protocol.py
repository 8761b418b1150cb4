"""The Open Inference Protocol, version 2, in JSON; its binary tensor extension is not spoken here yet."""

import time
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from app import __version__
from app.api import examples
from app.api.arrays import Array, count_elements, from_nested, listed
from app.api.bodies import aside, read_json, read_json_text
from app.api.dependencies import Resolving, Served, Services
from app.api.documentation import answers, inlined, json_body
from app.api.predictions import Prediction, predict
from app.api.resolution import Resolver
from app.api.schemas.inference import (
    InferAnswer,
    InferInput,
    InferRequest,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    TensorMetadata,
)
from app.api.strictness import StrictRoute
from app.api.validation import explain
from app.domain.errors import RequestInvalid, SignatureMismatch
from app.domain.names import Reference
from app.domain.tensors import PROTOCOL_NAMES, Signature, TensorSpec
from app.serving.terms import Arrays

router = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=StrictRoute)

_MODEL = (404, 409, 503)
_INFER = (404, 409, 413, 502, 503, 504)
_BODY = json_body(inlined(InferRequest), examples.INFER)


@router.get("", summary="Describe the server", responses=answers(examples.SERVER_METADATA))
async def server() -> ServerMetadata:
    """Return the server's name and version."""
    return ServerMetadata(name="octet", version=__version__, extensions=[])


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
    return await _metadata(services, resolver, _reference(model))


@router.get(
    "/models/{model}/versions/{version}",
    summary="Describe a version of a model",
    responses=answers(examples.MODEL_METADATA, errors=_MODEL),
)
async def version_metadata(model: str, version: str, services: Served, resolver: Resolving) -> ModelMetadata:
    """Return the tensors of one version of a model."""
    return await _metadata(services, resolver, _reference(model, version))


@router.get(
    "/models/{model}/ready",
    summary="Is a model ready?",
    responses=answers({"name": "resnet20", "ready": True}, errors=_MODEL),
)
async def model_ready(model: str, resolver: Resolving) -> ModelReady:
    """Answer if the model can: what is not loaded is loaded by the first request."""
    return await _ready(resolver, _reference(model))


@router.get(
    "/models/{model}/versions/{version}/ready",
    summary="Is a version of a model ready?",
    responses=answers({"name": "resnet20", "ready": True}, errors=_MODEL),
)
async def version_ready(model: str, version: str, resolver: Resolving) -> ModelReady:
    """Answer if one version of a model can."""
    return await _ready(resolver, _reference(model, version))


@router.post(
    "/models/{model}/infer",
    summary="Infer",
    response_model=InferAnswer,
    responses=answers(examples.INFERENCE, errors=_INFER),
    openapi_extra=_BODY,
)
async def infer(model: str, request: Request, services: Served, resolver: Resolving) -> Response:
    """Answer with a model's variant; `{model}` may be `name@variant`."""
    return await _infer(request, services, resolver, _reference(model))


@router.post(
    "/models/{model}/versions/{version}/infer",
    summary="Infer with a version of a model",
    response_model=InferAnswer,
    responses=answers(examples.INFERENCE, errors=_INFER),
    openapi_extra=_BODY,
)
async def infer_version(model: str, version: str, request: Request, services: Served, resolver: Resolving) -> Response:
    """Answer with one version of a model."""
    return await _infer(request, services, resolver, _reference(model, version))


def _reference(model: str, version: str | None = None) -> Reference:
    reference = Reference.parse(model)
    if version is None:
        return reference
    if not version.isdecimal() or reference.version not in (None, int(version[:9])):
        raise RequestInvalid(f"Version {version[:40]!r} of {model[:80]!r} cannot be: write a whole number, once.")
    return Reference(name=reference.name, version=int(version[:9]), variant=reference.variant)


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


async def _infer(request: Request, services: Services, resolver: Resolver, reference: Reference) -> Response:
    began = time.perf_counter()
    if "inference-header-content-length" in request.headers:
        raise RequestInvalid("Binary tensors are not taken yet: send 'data' in JSON.")
    with services.instruments.requests_in_flight.track_inprogress(), services.intake.held() as held:
        text = await read_json_text(request, limits=services.limits, held=held)
        asked = await aside(lambda: _read(text), size_bytes=len(text))

        async def parse(signature: Signature) -> Arrays:
            return await aside(lambda: _inputs(asked, signature), size_bytes=len(text))

        made = await predict(services, resolver, reference, parse=parse, began=began)
    answer = _answer(asked, made, limit=services.limits.max_json_bytes)
    body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


def _read(body: bytes) -> InferRequest:
    try:
        asked = InferRequest.model_validate(read_json(body))
    except ValidationError as error:
        raise RequestInvalid(explain(error.errors(), of="request")) from error
    wishes = [asked.parameters, *(output.parameters for output in asked.outputs or ())]
    if any(wish.get("binary_data") or wish.get("binary_data_output") for wish in wishes):
        raise RequestInvalid("Binary tensors are not sent yet: leave binary_data out and take JSON.")
    return asked


def _inputs(asked: InferRequest, signature: Signature) -> Arrays:
    names = [tensor.name for tensor in asked.inputs]
    if len(set(names)) != len(names):
        raise SignatureMismatch("The request sends an input twice: send each once.")
    known = {spec.name for spec in signature.outputs}
    for output in asked.outputs or ():
        if output.name not in known:
            raise SignatureMismatch(f"The model has no output {output.name[:80]!r}: it has {', '.join(sorted(known))}.")
    return {tensor.name: _array(tensor, signature.input(tensor.name)) for tensor in asked.inputs}


def _array(tensor: InferInput, spec: TensorSpec) -> Array:
    wanted = PROTOCOL_NAMES[spec.dtype]
    if tensor.datatype != wanted:
        raise SignatureMismatch(f"Input {spec.name!r} is {tensor.datatype[:40]!r}, but the model takes {wanted}.")
    array = from_nested(tensor.data, spec)
    shape = tuple(tensor.shape)
    if array.size != count_elements(spec.name, shape):
        raise SignatureMismatch(f"Input {spec.name!r} has {array.size} numbers, but its shape is {list(shape)}.")
    if array.ndim != 1 and array.shape != shape:
        raise SignatureMismatch(f"Input {spec.name!r} has data of shape {list(array.shape)}, but says {list(shape)}.")
    return array.reshape(shape)


def _answer(asked: InferRequest, made: Prediction, *, limit: int) -> dict[str, Any]:
    wanted = [output.name for output in asked.outputs] if asked.outputs else list(made.outputs)
    data = listed({name: made.outputs[name].reshape(-1) for name in wanted}, limit=limit)
    datatypes = {spec.name: PROTOCOL_NAMES[spec.dtype] for spec in made.variant.signature.outputs}
    outputs = [
        {
            "name": name,
            "datatype": datatypes[name],
            "shape": list(made.outputs[name].shape),
            "data": data[name],
        }
        for name in wanted
    ]
    answer: dict[str, Any] = {
        "model_name": made.variant.model,
        "model_version": str(made.variant.version),
        "outputs": outputs,
    }
    return answer if asked.id is None else {**answer, "id": asked.id}
