"""Around every request: its id, its line in the access log, its count, and the answer to a bug. Pure ASGI."""

import asyncio
import logging
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import services_of
from app.api.errors import RETRY_AFTER_SECONDS, problem
from app.api.headers import header
from app.api.http_protocol import exchange_of
from app.domain.errors import VariantNotReady
from app.telemetry.tracing import note_http_caller

INFERENCE_ROUTE = "octet.inference_route"
"""Where the scope of a prediction has its route: answered ones are logged at level `debug` alone."""

_access = logging.getLogger("octet.access")
_log = logging.getLogger("octet.api")

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_ERRORS_BEGIN = 400
_QUIET_SECONDS = 2.0
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What became of one request; filled in while it is answered."""

    status: int = 500
    started: bool = False


class Observed:
    """Names, logs and counts every request, and answers what nobody expected with a 500 that tells nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["octet.request_id"] = request_id = _request_id(scope)
        seen, begun = _Seen(), time.perf_counter()
        if services_of(Request(scope)).instruments.traces is not None:
            note_http_caller(scope["path"], scope["headers"])

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status, seen.started = message["status"], True
                named = [(b"x-request-id", request_id.encode("latin-1")), _NO_SNIFFING]
                message["headers"] = [each for each in message.get("headers", ()) if each != _NO_SNIFFING] + named
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except (asyncio.CancelledError, Exception) as error:
            if not isinstance(error, asyncio.CancelledError):  # which comes when the time to drain is over
                _log.exception("unexpected error", extra={"octet": {"request_id": request_id}})
            if seen.started:  # only breaking the connection off tells the client that the body is not whole
                raise
            await _last_word(error, request_id)(scope, receive, send_named)
        finally:
            _observe(scope, seen, seconds=time.perf_counter() - begun)


def _last_word(error: BaseException, request_id: str) -> ASGIApp:
    if isinstance(error, asyncio.CancelledError):
        stopped = VariantNotReady("The service has stopped before it could answer: send the request again.")
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return problem(503, code=stopped.code, detail=stopped.message, request_id=request_id, headers=headers)
    return problem(
        500,
        code="internal_error",
        detail=f"Octet failed to answer because of a bug: report it with the request id {request_id}.",
        request_id=request_id,
    )


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    return given if given and _SANE_ID.fullmatch(given) else secrets.token_hex(16)


def _observe(scope: Scope, seen: _Seen, *, seconds: float) -> None:
    inference = scope.get(INFERENCE_ROUTE)
    route = inference or getattr(scope.get("route"), "path", None) or "unmatched"
    method = scope["method"] if scope["method"] in _METHODS else "OTHER"
    services_of(Request(scope)).instruments.http_requests.labels(route, method, str(seen.status)).inc()
    level = logging.DEBUG if inference and seen.status < _ERRORS_BEGIN else logging.INFO
    if not _access.isEnabledFor(level):
        return
    line: dict[str, Any] = {
        "request_id": scope["octet.request_id"],
        "method": method,
        "path": scope["path"],
        "route": route,
        "status": seen.status,
        "milliseconds": round(seconds * 1000, 3),
        "client": (scope.get("client") or ("",))[0],
    }
    _access.log(level, "request", extra={"octet": line})


class LingeringClose:
    """Delivers an error that comes before the request's body has come.

    Closing a connection with unread bytes makes the kernel reset it, and the client may lose the answer (RFC 9112,
    section 9.6). So the answer goes out whole, what the client still sends is read and dropped for a while, and only
    then the connection closes.
    """

    def __init__(self, app: ASGIApp, *, seconds: float = 10.0) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        body, exchange = _Body(receive, waits=_waits_for_continue(scope)), exchange_of(scope)
        failing = False

        async def send_whole(message: Message) -> None:
            nonlocal failing
            if message["type"] == "http.response.start":
                here = body.ended or (exchange is not None and exchange.whole)
                failing = message["status"] >= _ERRORS_BEGIN and not here
                if failing:
                    MutableHeaders(scope=message)["Connection"] = "close"
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not (failing and last):
                await send(message)
                return
            await send({**message, "more_body": True})
            await body.drop(seconds=self._seconds)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, body.receive, send_whole)


class _Body:
    """The request's body as it is received."""

    def __init__(self, receive: Receive, *, waits: bool) -> None:
        self._receive = receive
        self._sending = not waits
        self.ended = False

    async def receive(self) -> Message:
        self._sending = True
        message = await self._receive()
        self.ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def drop(self, *, seconds: float) -> None:
        """Read to the end, or until the client stops sending. One that waits for `100 Continue` has not begun to."""
        if not self._sending:
            return
        deadline = time.monotonic() + seconds
        try:
            while not self.ended and (left := deadline - time.monotonic()) > 0:
                async with asyncio.timeout(min(left, _QUIET_SECONDS)):
                    await self.receive()
        except TimeoutError:  # a client that has stopped sending has seen the answer
            return


def _has_body(scope: Scope) -> bool:
    return header(scope, b"content-length") not in ("", "0") or header(scope, b"transfer-encoding") != ""


def _waits_for_continue(scope: Scope) -> bool:
    return header(scope, b"expect").lower() == "100-continue"
