"""The one-shot: send a model and rows, get a quantized artifact."""

from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from app.api import examples
from app.api.artifacts import whole_artifact
from app.api.dependencies import Served, Services
from app.api.documentation import answers, form_body
from app.api.oneshot import FILES, TEXT, made_variant, outcome, receive_all, wait_seconds
from app.api.strictness import StrictRoute
from app.api.uploads import Form, check_length
from app.catalogue.records import to_json
from app.domain.jobs import Job

router = APIRouter(tags=["jobs"], route_class=StrictRoute)

_FORM = form_body(
    examples.QUANTIZE_FORM,
    text={
        "name": "The model's name; else the file's.",
        "recipe": "A recipe as JSON; else `ptq_static` as it is by default.",
        "preprocessing": "How an image becomes the model's input, as JSON.",
        "labels": "What the model's classes are called: a JSON list, or a file with a name on each line.",
        "variant": "Name to publish under; else the recipe's.",
    },
    files={
        "model": "The model.",
        "calibration": "Rows that set the ranges.",
        "evaluation": "Rows that score; else rows that calibration left over.",
        "training": "Rows that train, for a recipe that does; else those that calibrate.",
    },
    required=["model"],
    raw=False,
)


@router.post(
    "/v1/quantize",
    summary="Quantize in one request",
    status_code=202,
    response_model=Job,
    responses=answers(
        {**examples.JOB, "state": "queued"},
        status=202,
        errors=(404, 409, 413, 503),
        also={200: {"description": "The artifact.", "content": {"application/onnx": {"example": "(bytes)"}}}},
    ),
    openapi_extra=_FORM,
)
async def quantize(request: Request, services: Served, prefer: Annotated[str | None, Header()] = None) -> Response:
    """Upload a model and its rows, and quantize. With `Prefer: wait=N` the answer is the artifact, if it is in time."""
    check_length(request, limit=services.limits.max_upload_bytes, files=len(FILES))
    await services.live.check()
    form = Form(text=TEXT, files=FILES)
    async with AsyncExitStack() as undo:
        job = await receive_all(services, form, form.read(request), undo=undo)
        undo.pop_all()
    return await _answer(services, job, wait=wait_seconds(prefer))


async def _answer(services: Services, job: Job, *, wait: int | None) -> Response:
    headers = {"Octet-Job": job.id}
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait}"
        job = await outcome(services, job, within_seconds=wait)
    if not job.state.final:
        location = {"Location": f"/v1/jobs/{job.id}"}
        return Response(to_json(job), status_code=202, media_type="application/json", headers=headers | location)
    variant = await made_variant(services, job)
    headers["Location"] = f"/v1/models/{variant.model}:{variant.version}/variants/{variant.name}"
    return await whole_artifact(services, variant, headers=headers)
