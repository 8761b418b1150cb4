"""How failures become answers over gRPC: one table from the domain's error families to status codes."""

from grpc import StatusCode

from app.api.errors import answered
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
)

# The class itself, else its nearest parent, decides. gRPC itself says RESOURCE_EXHAUSTED of a message over its limit.
TABLE: dict[type[OctetError], StatusCode] = {
    InvalidInput: StatusCode.INVALID_ARGUMENT,
    NotFound: StatusCode.NOT_FOUND,
    Conflict: StatusCode.FAILED_PRECONDITION,
    TooLarge: StatusCode.RESOURCE_EXHAUSTED,
    TooMany: StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: StatusCode.UNAVAILABLE,
    RunnerCrashed: StatusCode.INTERNAL,
    DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    # A job's outcome; no call here waits for a job.
    JobFailure: StatusCode.FAILED_PRECONDITION,
    OctetError: StatusCode.INTERNAL,
}

# What gRPC's own clients look at before they try again (proposal A6), in milliseconds.
PUSHBACK = "grpc-retry-pushback-ms"


def status_of(error: type[OctetError]) -> StatusCode:
    """Return the code of the row that an error falls under."""
    return next(TABLE[parent] for parent in error.__mro__ if parent in TABLE)


def trailers_of(error: OctetError) -> tuple[tuple[str, str], ...]:
    """Return the metadata that goes with an error: its code, and when to try again where that may help."""
    named = (("octet-code", error.code),)
    known = error.retry_after_seconds if isinstance(error, Unavailable) else None
    seconds = known or answered(type(error)).retry_after_seconds
    return named if seconds is None else (*named, (PUSHBACK, str(1000 * seconds)))
