"""Why a prediction got no answer, as `/metrics` tells it: with a graph that takes as long as it is asked to."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
import pytest

from tests.api.harness import Api, publish_model, running_api
from tests.running import wait_until
from tests.serving import spinner

LONG = 5_000_000
"""Turns that take a few seconds."""


@pytest.fixture(scope="module")
def spinning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application with `spin`, which takes one request at a time."""
    folder = tmp_path_factory.mktemp("spinning")
    nowhere = f"unix://{folder}/nobody-listens.sock"
    with running_api(folder / "data", redis_url=nowhere, max_queued_predictions=1) as running:
        publish_model(running, folder, name="spin", graph=spinner())
        assert running.client.post("/predict", json=asking(1)).status_code == 200
        yield running


def asking(turns: int) -> dict[str, object]:
    return {"model": "spin", "inputs": {"x": [[turns]]}}


def value(api: Api, metric: str, *labels: str) -> float:
    lines = api.client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(f"{metric}{{") and all(label in line for label in labels)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def rejected(api: Api, reason: str) -> float:
    return value(api, "octet_requests_rejected_total", 'model="spin"', f'reason="{reason}"')


def in_flight(api: Api) -> float:
    return value(api, "octet_variant_requests_in_flight", 'model="spin"')


@contextmanager
def sent(api: Api, *, turns: int) -> Iterator[socket.socket]:
    """Send a prediction, and go on when it is in flight."""
    wait_until(lambda: not in_flight(api), what="nothing is in flight")
    body = orjson.dumps(asking(turns))
    head = f"POST /predict HTTP/1.1\r\nHost: octet\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(head.encode() + b"\r\n" + body)
        wait_until(lambda: in_flight(api) == 1, what="it is in flight")
        yield connection


def test_a_deadline_that_is_missed_is_counted(spinning: Api) -> None:
    before = rejected(spinning, "deadline")
    answer = spinning.client.post("/predict", json=asking(LONG), headers={"X-Request-Timeout-Ms": "200"})
    assert answer.status_code == 504
    assert rejected(spinning, "deadline") - before == 1


def test_a_client_that_leaves_is_counted_and_its_request_no_longer_in_flight(spinning: Api) -> None:
    before = rejected(spinning, "cancelled")
    with sent(spinning, turns=LONG):
        pass
    wait_until(lambda: rejected(spinning, "cancelled") - before == 1, what="it is counted")
    assert in_flight(spinning) == 0


def test_a_full_queue_is_counted(spinning: Api) -> None:
    before = rejected(spinning, "queue_full")
    with sent(spinning, turns=LONG):
        assert spinning.client.post("/predict", json=asking(1)).status_code == 503
    assert rejected(spinning, "queue_full") - before == 1
    assert value(spinning, "octet_request_duration_seconds_count", 'outcome="unavailable"') >= 1


def test_a_body_that_does_not_fit_is_its_clients_own(spinning: Api) -> None:
    wait_until(lambda: not in_flight(spinning), what="nothing is in flight")
    before = rejected(spinning, "invalid")
    assert spinning.client.post("/predict", json={"model": "spin", "inputs": {"y": [[1]]}}).status_code == 422
    assert rejected(spinning, "invalid") - before == 1
