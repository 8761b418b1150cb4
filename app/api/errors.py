"""How failures become answers: one table from the domain's error families to HTTP, and `application/problem+json`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from app.api.validation import explain
from app.domain.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    JobFailure,
    NotFound,
    OctetError,
    RangeInvalid,
    RequestInvalid,
    RunnerCrashed,
    TooLarge,
    TooMany,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"
# The client left before it was answered: no status of HTTP's own, but the log wants one (nginx's convention).
CLIENT_LEFT = 499
RETRY_AFTER_SECONDS = 5

_log = logging.getLogger("octet.api")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How one family of errors is answered."""

    status: HTTPStatus
    retry_after_seconds: int | None = None


# The class itself, else its nearest parent, decides.
TABLE: dict[type[OctetError], Answered] = {
    RangeInvalid: Answered(status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE),
    InvalidInput: Answered(status=HTTPStatus.UNPROCESSABLE_ENTITY),
    NotFound: Answered(status=HTTPStatus.NOT_FOUND),
    Conflict: Answered(status=HTTPStatus.CONFLICT),
    TooLarge: Answered(status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    TooMany: Answered(status=HTTPStatus.TOO_MANY_REQUESTS, retry_after_seconds=RETRY_AFTER_SECONDS),
    Unavailable: Answered(status=HTTPStatus.SERVICE_UNAVAILABLE, retry_after_seconds=RETRY_AFTER_SECONDS),
    RunnerCrashed: Answered(status=HTTPStatus.BAD_GATEWAY),
    DeadlineExceeded: Answered(status=HTTPStatus.GATEWAY_TIMEOUT),
    # A job's outcome; only the one-shot, which waits for its job, answers with it.
    JobFailure: Answered(status=HTTPStatus.UNPROCESSABLE_ENTITY),
    OctetError: Answered(status=HTTPStatus.INTERNAL_SERVER_ERROR),
}


def answered(error: type[OctetError]) -> Answered:
    """Return the row of the table that an error falls under."""
    return next(TABLE[parent] for parent in error.__mro__ if parent in TABLE)


def problem(
    status: int, *, code: str, detail: str, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Write an error as RFC 9457 wants it, with `error` for the Open Inference Protocol."""
    members: dict[str, Any] = {
        "type": f"urn:octet:error:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": int(status),
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "error": detail,
    }
    return Response(orjson.dumps(members), status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def problem_of(request: Request, error: OctetError, *, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with an expected failure."""
    row = answered(type(error))
    chosen = dict(headers or {})
    if row.retry_after_seconds is not None:
        known = error.retry_after_seconds if isinstance(error, Unavailable) else None
        chosen["Retry-After"] = str(known or row.retry_after_seconds)
    return problem(row.status, code=error.code, detail=error.message, request_id=request_id_of(request), headers=chosen)


def request_id_of(request: Request) -> str:
    """Return the id that the middleware gave the request."""
    return str(request.scope.get("octet.request_id", ""))


def register(app: FastAPI) -> None:
    """Install the handlers. What none of them takes is a bug: `app.api.middleware` answers it with a 500."""
    app.add_exception_handler(OctetError, _octet_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_left)


async def _octet_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OctetError)  # noqa: S101 - registered for this class alone
    if answered(type(error)).status is HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("unmapped error", exc_info=error, extra={"octet": {"request_id": request_id_of(request)}})
    return problem_of(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class alone
    return problem_of(request, RequestInvalid(explain(error.errors(), of="request")))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class alone
    status = HTTPStatus(error.status_code)
    return problem(
        status,
        code=status.phrase.lower().replace(" ", "_").replace("-", "_"),
        detail=_http_detail(request, status, error.detail),
        request_id=request_id_of(request),
        headers={**(error.headers or {}), **_allowed(request, status)},
    )


def _allowed(request: Request, status: HTTPStatus) -> dict[str, str]:
    """Name all methods that a path takes: Starlette names those of the first of its routes alone."""
    if status is not HTTPStatus.METHOD_NOT_ALLOWED:
        return {}
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    fitting = [route.methods or set() for route in routes if route.path_regex.match(request.scope["path"])]
    return {"Allow": ", ".join(sorted(set().union(*fitting)))}


def _http_detail(request: Request, status: HTTPStatus, detail: str) -> str:
    path = request.url.path[:120]
    if status is HTTPStatus.NOT_FOUND:
        return f"There is nothing at {path!r}: the routes are listed at /docs."
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{path!r} does not take {request.method}: see /docs for what it takes."
    return detail


async def _client_left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)
