"""The short way to inference: its few routes, matched by hand, past FastAPI's routing and parsing of parameters.

It calls the same functions as the documented routes do, and leaves to them whatever it does not know: take this
middleware away and everything works as before, a few tenths of a millisecond slower.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.dependencies import Services, resolver_of, services_of
from app.api.errors import CLIENT_LEFT, problem_of
from app.api.headers import PlainHeaders
from app.api.http_protocol import exchange_of
from app.api.middleware import INFERENCE_ROUTE
from app.api.model_paths import reference_in
from app.api.resolution import Resolver
from app.api.routes.predict import predict_with
from app.api.routes.protocol import infer_with
from app.domain.errors import OctetError

_PREDICT_PARAMETERS = {"model", "variant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A route that is known here, and what answers it."""

    route: str
    answer: Callable[[Request, Services, Resolver], Awaitable[Response]]


class InferenceLane:
    """Answers inference itself and passes everything else on. A client that leaves takes its request along."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        found = _find(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope[INFERENCE_ROUTE] = found.route
        exchange, task, left = exchange_of(scope), asyncio.current_task(), False

        def leave() -> None:
            nonlocal left
            left = True
            if task is not None:
                task.cancel()

        if exchange is not None:
            exchange.on_lost = leave
        try:
            await _answer(found, scope, receive, send)
        except asyncio.CancelledError:
            if not left or task is None:
                raise
            task.uncancel()
            await Response(status_code=CLIENT_LEFT)(scope, receive, send)  # nobody reads it, but it is counted
        finally:
            if exchange is not None:
                exchange.on_lost = None


class _PlainRequest(Request):
    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        self._headers = PlainHeaders(scope)  # what `headers` returns, and would make otherwise


async def _answer(found: _Found, scope: Scope, receive: Receive, send: Send) -> None:
    request = _PlainRequest(scope, receive)
    try:
        response = await found.answer(request, services_of(request), resolver_of(request))
    except OctetError as error:
        response = problem_of(request, error)
    except ClientDisconnect:
        response = Response(status_code=CLIENT_LEFT)
    await response(scope, receive, send)


def _find(scope: Scope) -> _Found | None:
    parts, query = scope["path"].split("/"), scope["query_string"]
    if "" in parts[1:]:
        return None
    match parts:
        case ["", "v2", "models", model, "infer"] if not query:
            return _inferring("/v2/models/{model}/infer", model, None)
        case ["", "v2", "models", model, "versions", version, "infer"] if not query:
            return _inferring("/v2/models/{model}/versions/{version}/infer", model, version)
        case ["", "v1", "models", model, "predict"] if not query:
            return _predicting("/v1/models/{model}/predict", model, None)
        case ["", "predict"]:
            pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
            named = dict(pairs)
            if len(named) == len(pairs) and named.keys() <= _PREDICT_PARAMETERS:
                return _predicting("/predict", named.get("model"), named.get("variant"))
    return None


def _inferring(route: str, model: str, version: str | None) -> _Found:
    async def answer(request: Request, services: Services, resolver: Resolver) -> Response:
        return await infer_with(request, services, resolver, reference_in(model, version))

    return _Found(route=route, answer=answer)


def _predicting(route: str, model: str | None, variant: str | None) -> _Found:
    async def answer(request: Request, services: Services, resolver: Resolver) -> Response:
        return await predict_with(request, services, resolver, model=model, variant=variant)

    return _Found(route=route, answer=answer)
