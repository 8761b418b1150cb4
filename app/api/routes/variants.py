"""Variants: look up, download, report, load and unload."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse

from app.api import examples
from app.api.artifacts import artifact_answer
from app.api.dependencies import Served
from app.api.documentation import answers
from app.api.references import plain_reference
from app.api.reports import report_page
from app.api.schemas.catalogue import RunnerState, VariantList
from app.api.strictness import StrictRoute
from app.domain.names import check_name
from app.domain.reports import Report
from app.domain.variants import Variant

router = APIRouter(prefix="/v1/models/{model}/variants", tags=["catalogue"], route_class=StrictRoute)

_ONE = (404, 409, 503)


async def _named(model: str, variant: str, services: Served) -> Variant:
    manifest = (await services.models.resolve(plain_reference(model))).ready()
    return await services.variants.get(manifest.name, manifest.version, check_name(variant, of="variant"))


Named = Annotated[Variant, Depends(_named)]


@router.get(
    "", summary="List a model's variants", responses=answers({"variants": [examples.VARIANT]}, errors=(404, 503))
)
async def list_variants(model: str, services: Served) -> VariantList:
    """List what is published of one version, oldest first."""
    upload = (await services.models.resolve(plain_reference(model))).upload
    return VariantList(variants=await services.variants.list(upload.name, upload.version))


@router.get("/{variant}", summary="Look up a variant", responses=answers(examples.VARIANT, errors=_ONE))
async def get_variant(found: Named) -> Variant:
    """Return a variant's record: artifact, execution, signature, recipe."""
    return found


@router.get(
    "/{variant}/artifact",
    summary="Download an artifact",
    response_class=Response,
    responses=answers(
        "(bytes)",
        media="application/onnx",
        errors=(*_ONE, 416),
        also={206: {"description": "The range asked for."}, 304: {"description": "The client has it already."}},
    ),
)
async def get_artifact(found: Named, request: Request, services: Served) -> Response:
    """Send the artifact; `ETag` is its SHA-256, and `Range`, `If-Range` and `If-None-Match` are honoured."""
    return await artifact_answer(request, services, found)


router.head("/{variant}/artifact", include_in_schema=False)(get_artifact)


@router.get("/{variant}/report", summary="Read a variant's report", responses=answers(examples.REPORT, errors=_ONE))
async def get_report(found: Named, services: Served) -> Report:
    """Return what was measured on the artifact."""
    return await services.variants.report(found)


router.get("/{variant}/report.json", include_in_schema=False)(get_report)


@router.get(
    "/{variant}/report.html",
    summary="Look at a variant's report",
    response_class=HTMLResponse,
    responses=answers("<!doctype html>…", media="text/html", errors=_ONE),
)
async def get_report_page(found: Named, services: Served) -> Response:
    """Return the report as one page that needs nothing else: it can be saved, sent and printed."""
    return await report_page(await services.variants.report(found))


@router.post("/{variant}/load", summary="Load a variant", responses=answers({"state": "ready"}, errors=_ONE))
async def load_variant(found: Named, services: Served) -> RunnerState:
    """Start the variant's runner now, instead of on the first prediction."""
    await services.pool.load(found)
    return RunnerState(state="ready")


@router.post("/{variant}/unload", summary="Unload a variant", responses=answers({"state": "unloaded"}, errors=_ONE))
async def unload_variant(found: Named, services: Served) -> RunnerState:
    """Stop the variant's runner; the next prediction starts it again."""
    await services.pool.unload(found)
    return RunnerState(state="unloaded")
