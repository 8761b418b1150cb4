"""What FastAPI does not check by itself: unknown query parameters, and how long a JSON body is."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message

from app.api.dependencies import services_of
from app.api.intake import Bound, read_bounded
from app.domain.errors import RequestInvalid

MOST_JSON_BYTES = 2**20
_UNREADABLE = "The body cannot be read as JSON: send JSON text in UTF-8 that does not nest deeply."
_ADVICE = "send files to /v1/models and /v1/datasets, arrays to /predict"


class StrictRoute(APIRoute):
    """A route that takes no parameter it does not declare, and JSON bodies of at most a MiB.

    Routes that read the request's body themselves have limits of their own.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, known = super().get_route_handler(), _parameters(self)

        async def strictly(request: Request) -> Response:
            _check_parameters(request, known=known)
            if self.body_field is not None:
                request = await _read_whole(request)
            try:
                return await handle(request)
            except HTTPException as error:
                if error.status_code == HTTPStatus.BAD_REQUEST:  # so FastAPI says that its parser gave up
                    raise RequestInvalid(_UNREADABLE) from error
                raise

        return strictly


def _parameters(route: APIRoute) -> frozenset[str]:
    elsewhere = (params.Path, params.Header, params.Cookie)
    declared = get_flat_params(route.dependant)
    return frozenset(parameter.alias for parameter in declared if not isinstance(parameter.field_info, elsewhere))


def _check_parameters(request: Request, *, known: frozenset[str]) -> None:
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        allowed = f"take {', '.join(sorted(known))}" if known else "it takes none"
        raise RequestInvalid(f"The request has an unknown parameter {unknown[0][:80]!r}: {allowed}.")


async def _read_whole(request: Request) -> Request:
    seconds = services_of(request).limits.body_timeout_seconds
    body = await read_bounded(request, Bound(most_bytes=MOST_JSON_BYTES, advice=_ADVICE, seconds=seconds))

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, replay)
