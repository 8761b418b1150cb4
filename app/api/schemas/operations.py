"""What the operation routes say."""

from typing import Literal

from pydantic import BaseModel


class Alive(BaseModel):
    """The process runs."""

    status: Literal["alive"]


class Readiness(BaseModel):
    """Whether predictions can be answered, and what Octet stands on."""

    status: Literal["ready", "unavailable"]
    checks: dict[str, Literal["ok", "unavailable"]]


class VersionAnswer(BaseModel):
    """Octet's version."""

    version: str


class Problem(BaseModel):
    """An error (RFC 9457); `error` repeats `detail`, as the Open Inference Protocol wants it."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    error: str
