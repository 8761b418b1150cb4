"""Server-sent events (WHATWG HTML, section 9.2): parsing, and a stream that survives a broken connection."""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass

import httpx

from app.domain.errors import Unavailable

RECONNECT_SECONDS = 0.5
PATIENCE_SECONDS = 60
QUIET_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event; `id` is what `Last-Event-ID` takes to go on after it."""

    name: str
    data: str
    id: str | None


def parse(lines: Iterable[str]) -> Generator[Event, None, None]:
    """Yield the events of a stream's lines. An event that is cut off before its empty line is dropped."""
    name, data, last_id = "message", list[str](), None
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                name = value
            case "data":
                data.append(value)
            case "id":
                last_id = value
        if line == "":
            if data:
                yield Event(name=name, data="\n".join(data), id=last_id)
            name, data = "message", []


def unbroken(
    open_stream: Callable[[str | None], Generator[Event, None, None]], *, until: float
) -> Generator[Event, None, None]:
    """Yield events, opening the stream again after the last one whenever it ends or breaks off.

    Args:
        open_stream: takes the last event's id; raises httpx's and the domain's errors.
        until: the monotonic time at which to stop.

    Raises:
        Unavailable: the service stayed away for `PATIENCE_SECONDS`.
    """
    last_id: str | None = None
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        try:
            with closing(open_stream(last_id)) as events:
                for event in events:
                    last_id = event.id or last_id
                    yield event
            give_up_at = time.monotonic() + PATIENCE_SECONDS
        except (httpx.TransportError, Unavailable) as error:
            if time.monotonic() > give_up_at:
                raise Unavailable(
                    f"The job's events stayed away for {PATIENCE_SECONDS} s ({error}): ask for the job itself."
                ) from error
        time.sleep(RECONNECT_SECONDS)
