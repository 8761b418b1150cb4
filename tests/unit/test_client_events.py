"""Server-sent events: parsing, and going on where a stream broke off."""

import math
from collections.abc import Generator
from itertools import islice

import httpx
import pytest

from app.client import events
from app.client.events import Event, parse, unbroken
from app.domain.errors import JobNotFound, Unavailable


def event(number: int) -> Event:
    return Event(name="job", data=str(number), id=str(number))


def test_an_event_has_its_name_data_and_id() -> None:
    assert list(parse(["id: 7", "event: job", 'data: {"a": 1}', ""])) == [Event(name="job", data='{"a": 1}', id="7")]


def test_data_of_several_lines_is_joined() -> None:
    assert [found.data for found in parse(["data: a", "data:b", ""])] == ["a\nb"]


def test_comments_are_no_events() -> None:
    assert list(parse([": keep-alive", "", ": again", ""])) == []


def test_an_event_without_id_keeps_the_last_one() -> None:
    assert [found.id for found in parse(["id: 3", "data: a", "", "data: b", ""])] == ["3", "3"]


def test_an_event_that_is_cut_off_is_dropped() -> None:
    assert [found.data for found in parse(["data: a", "", "data: b"])] == ["a"]


def test_a_broken_stream_goes_on_after_its_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RECONNECT_SECONDS", 0)

    def stream(last_id: str | None) -> Generator[Event, None, None]:
        if last_id is None:
            yield event(1)
            raise httpx.ReadError("broken")
        yield event(int(last_id) + 1)

    assert list(islice(unbroken(stream, until=math.inf), 3)) == [event(1), event(2), event(3)]


def test_a_service_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RECONNECT_SECONDS", 0)
    monkeypatch.setattr(events, "PATIENCE_SECONDS", 0)

    def stream(_: str | None) -> Generator[Event, None, None]:
        raise httpx.ConnectError("refused")
        yield

    with pytest.raises(Unavailable, match="refused"):
        next(unbroken(stream, until=math.inf))


def test_an_unknown_job_is_not_asked_for_again() -> None:
    def stream(_: str | None) -> Generator[Event, None, None]:
        raise JobNotFound("There is no job 'x'.")
        yield

    with pytest.raises(JobNotFound):
        next(unbroken(stream, until=math.inf))


def test_the_stream_ends_when_its_time_is_over() -> None:
    assert list(unbroken(lambda _: pytest.fail("asked too late"), until=-math.inf)) == []
