"""Around every call: its id, its line in the access log, and how a failure is answered. Knows no method."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias, TypeVar

from grpc import StatusCode
from grpc.aio import ServicerContext

from app.api.resolution import AFFINITY
from app.domain.errors import OctetError, RequestInvalid, TooMany
from app.rpc.statuses import status_of, trailers_of
from app.telemetry.tracing import note_grpc_caller

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Context: TypeAlias = "ServicerContext[Any, Any]"  # no generic class when the program runs

_access = logging.getLogger("octet.access")
_log = logging.getLogger("octet.rpc")

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_REQUEST_ID = "x-request-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a method is told beside its message.

    Attributes:
        began: `time.perf_counter()` when the message was there.
        deadline: on `time.monotonic()`, when the client gives up; None if it waits for ever.
        affinity: the key by which one of several variants is chosen, as the client sent it.
    """

    request_id: str
    began: float
    deadline: float | None
    affinity: str | None

    def seconds_left(self) -> float | None:
        """Return how long the client still waits; None if it does so for ever."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def next_message(self) -> Self:
        """Return the call as a later message of its stream sees it."""
        return replace(self, began=time.perf_counter())


Unary = Callable[[Asked, Call], Awaitable[Answer]]
Stream = Callable[[Asked, Call], AsyncGenerator[Answer, None]]
Messages = AsyncIterator[Asked]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a call ends that was not answered."""

    status: StatusCode
    message: str
    trailers: tuple[tuple[str, str], ...]


class Quota:
    """Bounds how many calls of a kind are under way at once.

    Args:
        what: these calls, in the plural.
        advice: what to do about one too many.
    """

    def __init__(self, most: int, *, what: str, advice: str) -> None:
        self._most = most
        self._what = what
        self._advice = advice
        self._taken = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Count one more until the block ends.

        Raises:
            TooMany: that is more than there may be.
        """
        if self._taken >= self._most:
            raise TooMany(f"{self._most} {self._what} are under way, the limit of a gateway process: {self._advice}.")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


def unary(
    method: str, behaviour: Unary[Asked, Answer], *, seconds: float, quota: Quota
) -> Callable[[Messages[Asked], Context], Awaitable[Answer | None]]:
    """Wrap a method that takes one message, which must be there within `seconds`, and gives one unless it fails."""

    async def answered(messages: Messages[Asked], context: Context) -> Answer | None:
        with _logged(method, context) as call, quota.taken():
            return await behaviour(await _only(messages, seconds=seconds), call.next_message())
        return None

    return answered


def watched(
    method: str, behaviour: Stream[Asked, Answer], *, seconds: float, quota: Quota
) -> Callable[..., Awaitable[None]]:
    """Wrap a method that takes one message, which must be there within `seconds`, and gives many."""

    async def begun(messages: Messages[Asked], call: Call) -> AsyncGenerator[Answer, None]:
        async with aclosing(behaviour(await _only(messages, seconds=seconds), call)) as answers:
            async for answer in answers:
                yield answer

    return streaming(method, begun, quota=quota)


def streaming(
    method: str, behaviour: Stream[Messages[Asked], Answer], *, quota: Quota
) -> Callable[[Messages[Asked], Context], Awaitable[None]]:
    """Wrap a method that takes and gives many messages; it is closed as soon as the client leaves."""

    async def answered(messages: Messages[Asked], context: Context) -> None:
        with _logged(method, context) as call, quota.taken():
            async with aclosing(behaviour(messages, call)) as answers:
                async for answer in answers:
                    await context.write(answer)

    return answered


async def _only(messages: Messages[Asked], *, seconds: float) -> Asked:
    """Read the one message of a call.

    Raises:
        RequestInvalid: there is none, not in time, or it cannot be read.
    """
    try:
        async with asyncio.timeout(seconds):
            return await anext(messages)
    except StopAsyncIteration:
        raise RequestInvalid("The call brings no message: send one.") from None
    except TimeoutError as error:
        raise RequestInvalid(
            f"The message did not come within {seconds:g} s, the limit: send it faster, or raise "
            "OCTET_BODY_TIMEOUT_SECONDS."
        ) from error


def failure_of(error: Exception, *, request_id: str) -> Failure:
    """Return what a client is told; of a bug it learns nothing but the id under which the log has it."""
    named = ((_REQUEST_ID, request_id),)
    if isinstance(error, OctetError):
        return Failure(status=status_of(type(error)), message=error.message, trailers=(*named, *trailers_of(error)))
    _log.error("unexpected error", exc_info=error, extra={"octet": {"request_id": request_id}})
    return Failure(
        status=StatusCode.INTERNAL,
        message=f"Octet failed to answer because of a bug: report it with the request id {request_id}.",
        trailers=(*named, ("octet-code", "internal_error")),
    )


@contextmanager
def _logged(method: str, context: Context) -> Iterator[Call]:
    """Tell the client of a failure, and the log of the call. This is the last handler: no exception but a cancellation
    passes, so that a bug does not tell the client what it is.
    """
    call, status = _call_of(context), StatusCode.CANCELLED
    context.set_trailing_metadata(((_REQUEST_ID, call.request_id),))
    try:
        yield call
        status = StatusCode.OK
    except Exception as error:  # noqa: BLE001 - see above
        failure = failure_of(error, request_id=call.request_id)
        status = failure.status
        _tell(context, failure)
    finally:
        line = {
            "request_id": call.request_id,
            "method": method,
            "status": status.name,
            "milliseconds": round(1000 * (time.perf_counter() - call.began), 3),
            "client": context.peer(),
        }
        _access.info("call", extra={"octet": line})


def _tell(context: Context, failure: Failure) -> None:
    """Say how the call ends. `abort` would do so too, but leaves its frames behind until the next full collection."""
    context.set_code(failure.status)
    context.set_details(failure.message)
    context.set_trailing_metadata(failure.trailers)


def _call_of(context: Context) -> Call:
    metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    note_grpc_caller(metadata.items())
    given = metadata.get(_REQUEST_ID, "")
    left: float | None = context.time_remaining()
    return Call(
        request_id=given if _SANE_ID.fullmatch(given) else secrets.token_hex(16),
        began=time.perf_counter(),
        deadline=None if left is None else time.monotonic() + left,
        affinity=metadata.get(AFFINITY.lower()),
    )
