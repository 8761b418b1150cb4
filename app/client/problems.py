"""Answers that are errors, turned back into the domain's classes, so that `except ModelNotFound` works here too."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from pydantic import TypeAdapter, ValidationError

from app.domain.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    JobFailure,
    NotFound,
    OctetError,
    RunnerCrashed,
    TooLarge,
    TooMany,
    Unavailable,
    failure_of,
    tree,
)
from app.domain.jobs import Job, JobState

_BY_CODE = {error.code: error for error in tree()}
_BY_STATUS: dict[int, type[OctetError]] = {
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: TooMany,
    502: RunnerCrashed,
    503: Unavailable,
    504: DeadlineExceeded,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """The members of `application/problem+json` (RFC 9457) that Octet's client reads."""

    detail: str
    code: str
    request_id: str | None = None


_PROBLEM = TypeAdapter(_Problem)


def check(response: httpx.Response) -> None:
    """Return if the answer is a success; its body may be unread.

    Raises:
        OctetError: the class that the answer's `code` names, with the request id as a note.
    """
    if not response.is_error:
        return
    response.read()
    raise _error_of(response)


def _error_of(response: httpx.Response) -> OctetError:
    try:
        problem = _PROBLEM.validate_json(response.content)
    except ValidationError:
        return _foreign_error(response)
    error = _BY_CODE.get(problem.code, _class_of(response.status_code))(problem.detail)
    request_id = problem.request_id or response.headers.get("X-Request-Id")
    if request_id:
        error.add_note(f"request id: {request_id}")
    return error


def _foreign_error(response: httpx.Response) -> OctetError:
    """Describe an error that Octet did not write, such as a proxy's page."""
    return _class_of(response.status_code)(
        f"{response.request.method} {response.url} answered {response.status_code} {response.reason_phrase} "
        "without saying why: check that the URL is Octet's."
    )


def _class_of(status: int) -> type[OctetError]:
    family = InvalidInput if status < 500 else OctetError  # noqa: PLR2004 - HTTP's own boundary
    return _BY_STATUS.get(status, family)


@contextmanager
def translated(base_url: str) -> Iterator[None]:
    """Turn what the network does into the domain's errors.

    Raises:
        DeadlineExceeded: the service took the connection but did not answer in time.
        Unavailable: there is no service at the URL, or it broke the connection off.
    """
    try:
        yield
    except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
        raise DeadlineExceeded(f"Octet at {base_url} did not answer in time: try again, or allow more time.") from error
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(f"Octet does not answer at {base_url} ({reason}): is `octet serve` running there?") from error


def succeeded(job: Job) -> Job:
    """Return a finished job if it succeeded.

    Raises:
        OctetError: it failed, as the class that its code names; JobFailure if it was cancelled.
    """
    if job.state is JobState.SUCCEEDED:
        return job
    if job.error is None:
        raise JobFailure(f"Job {job.id} is {job.state}, so it has no outcome: ask for the work again.")
    raise failure_of(job.error.code, job.error.message)
