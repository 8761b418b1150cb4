"""Jobs: ask for work, follow it, call it off."""

from contextlib import AsyncExitStack
from typing import Annotated, Literal
from uuid import uuid4

from fastapi import APIRouter, Body, Depends, Header, Query, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, StreamingResponse

from app.api import examples, orders, submission
from app.api.dependencies import Served, Services
from app.api.documentation import answers
from app.api.events import check_event_id, find_job, job_events
from app.api.idempotency import claim, keep
from app.api.reports import report_page
from app.api.schemas.jobs import JobList, JobRequest, QuantizeRequest
from app.api.strictness import StrictRoute
from app.domain.errors import ReportNotFound
from app.domain.jobs import Job
from app.domain.reports import Report

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

_ONE = (404, 503)
_REQUESTS = {
    "quantize": {"summary": "Quantize a model", "value": examples.QUANTIZE},
    **{
        f"quantize_{name}": {"summary": f"Quantize: {what}", "value": {**examples.QUANTIZE, "recipe": recipe}}
        for name, (what, recipe) in examples.RECIPES.items()
    },
    "train": {"summary": "Quantize and train", "value": examples.TRAIN},
    "evaluate": {"summary": "Measure a variant on other rows", "value": examples.EVALUATE},
}


async def _found(job: str, services: Served) -> Job:
    return await find_job(services, job)


Found = Annotated[Job, Depends(_found)]


@router.post(
    "",
    summary="Ask for work",
    status_code=202,
    responses=answers({**examples.JOB, "state": "queued"}, status=202, errors=(404, 409, 413, 503)),
)
async def create_job(
    asked: Annotated[JobRequest, Body(openapi_examples=_REQUESTS)],
    response: Response,
    services: Served,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Job:
    """Queue a job, or return the one that the same request with the same `Idempotency-Key` made before."""
    job_id = uuid4().hex
    async with AsyncExitStack() as undo:
        job = None
        if idempotency_key is not None:
            body = asked.model_dump_json().encode()
            job = await claim(services, idempotency_key, request=body, job=job_id, undo=undo)
        job = job or await _order(services, asked, job_id=job_id, undo=undo)
        if idempotency_key is not None:
            await keep(services, idempotency_key)
        undo.pop_all()
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


async def _order(services: Services, asked: JobRequest, *, job_id: str, undo: AsyncExitStack) -> Job:
    if isinstance(asked, QuantizeRequest):
        job, after = await orders.order_quantize(
            services,
            job_id,
            model=asked.model,
            calibration=asked.calibration,
            evaluation=asked.evaluation,
            training=asked.training,
            recipe=asked.recipe,
            variant=asked.variant,
        )
    else:
        job, after = await orders.order_evaluate(
            services, job_id, model=asked.model, variant=asked.variant, evaluation=asked.evaluation
        )
    await submission.submit(services, job, after=after, undo=undo)
    return job


@router.get("", summary="List jobs", responses=answers({"jobs": [examples.JOB]}, errors=(503,)))
async def list_jobs(services: Served, limit: Annotated[int, Query(ge=1, le=500)] = 50) -> JobList:
    """List the jobs that Redis knows, newest first."""
    return JobList(jobs=await services.live.newest(limit))


@router.get("/{job}", summary="Look up a job", responses=answers(examples.JOB, errors=_ONE))
async def get_job(found: Found) -> Job:
    """Return a job, live or from history."""
    return found


@router.get(
    "/{job}/events",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses=answers(examples.EVENT, media="text/event-stream", errors=(404, 429, 503)),
)
async def follow_job(
    found: Found, services: Served, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Send every state of a job as a server-sent event until it is final."""
    services.live.check_followers()
    return StreamingResponse(
        job_events(services, found, after=check_event_id(last_event_id)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.post(
    "/{job}/cancel",
    summary="Cancel a job",
    status_code=202,
    responses=answers({**examples.JOB, "state": "cancelled"}, status=202, errors=(404, 409, 503)),
)
async def cancel_job(
    found: Found,
    services: Served,
    keep: Annotated[
        Literal["best"] | None,
        Query(description="`best` ends the training alone: the best so far is measured and published."),
    ] = None,
) -> Job:
    """Call a job off: it is final at once, and its worker stops. With `keep=best` only its training ends, soon."""
    if keep is not None:
        return await submission.ask_to_finish(services, found)
    return await submission.cancel(services, found)


@router.get(
    "/{job}/log",
    summary="Read a job's log",
    response_class=PlainTextResponse,
    responses=answers(examples.LOG, media="text/plain", errors=_ONE),
)
async def get_log(found: Found, services: Served) -> PlainTextResponse:
    """Return what the job's processes printed."""
    kept = await services.history.log(found.id) if found.state.final else None
    if kept is None:  # it may end just now, and its log move to history
        kept = await services.live.log(found.id) or await services.history.log(found.id)
    return PlainTextResponse(kept or "")


async def _report(job: Found, services: Served) -> Report:
    report = await services.history.report(job.id)
    if report is None:
        raise ReportNotFound(
            f"Job {job.id} ({job.kind}, {job.state}) has no report: an evaluate job that succeeded has one, and a "
            "quantize job that failed after it had measured; else look at the variant's."
        )
    return report


Reported = Annotated[Report, Depends(_report)]


@router.get("/{job}/report", summary="Read a job's report", responses=answers(examples.REPORT, errors=_ONE))
async def get_job_report(report: Reported) -> Report:
    """Return what an evaluate job measured, or a quantize job that failed on it; else the report is the variant's."""
    return report


router.get("/{job}/report.json", include_in_schema=False)(get_job_report)


@router.get(
    "/{job}/report.html",
    summary="Look at a job's report",
    response_class=HTMLResponse,
    responses=answers("<!doctype html>…", media="text/html", errors=_ONE),
)
async def get_job_report_page(report: Reported) -> Response:
    """Return the same report as one page that needs nothing else."""
    return await report_page(report)
