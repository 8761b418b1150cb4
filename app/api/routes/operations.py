"""What operators and their machines ask: alive, ready, version, metrics."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST

from app import __version__
from app.api import examples
from app.api.dependencies import Served
from app.api.documentation import answers
from app.api.schemas.operations import Alive, Readiness, VersionAnswer
from app.api.strictness import StrictRoute
from app.domain.errors import Unavailable

router = APIRouter(tags=["operation"], route_class=StrictRoute)

CHECK_SECONDS = 2.0
_UNREADY = {
    503: {
        "description": "The store is gone.",
        "content": {
            "application/json": {
                "example": {"status": "unavailable", "checks": {"store": "unavailable", "queue": "ok"}}
            }
        },
    }
}


@router.get("/livez", summary="Is the process alive?", responses=answers({"status": "alive"}))
async def livez() -> Alive:
    """Answer as long as the process runs."""
    return Alive(status="alive")


@router.get("/readyz", summary="Can it answer?", responses=answers(examples.READINESS, also=_UNREADY))
async def readyz(response: Response, services: Served) -> Readiness:
    """Say whether predictions can be answered. Redis being down is shown, but they go on without it."""
    store, queue = await asyncio.gather(_state(services.store.check()), _state(services.live.check()))
    if store != "ok":
        response.status_code = 503
        return Readiness(status="unavailable", checks={"store": store, "queue": queue})
    return Readiness(status="ready", checks={"store": store, "queue": queue})


@router.get("/version", summary="Which Octet is this?", responses=answers({"version": __version__}))
async def version() -> VersionAnswer:
    """Return Octet's version."""
    return VersionAnswer(version=__version__)


@router.get(
    "/metrics",
    summary="Read the metrics",
    response_class=Response,
    responses=answers(examples.METRICS, media="text/plain"),
)
def metrics(services: Served) -> Response:
    """Return every process of this machine in Prometheus' text format."""
    return Response(services.instruments.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """Show the documentation to whoever opens the address in a browser."""
    return RedirectResponse("/docs")


async def _state(check: Coroutine[Any, Any, None]) -> Literal["ok", "unavailable"]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check
    except (Unavailable, TimeoutError):
        return "unavailable"
    return "ok"
