"""Traces of real predictions, as a collector receives them."""

from collections.abc import Iterator

import pytest

from tests.api.harness import Api, publish_model, running_api
from tests.graphs import INPUT, rows
from tests.receiver import Receiver, attributes, receiving

TRACE, CALLERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{CALLERS_SPAN}-01"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture(scope="module")
def traced(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("traced")
    nowhere = f"unix://{folder}/nobody-listens.sock"
    with running_api(folder / "data", redis_url=nowhere, traces_endpoint=receiver.url) as running:
        publish_model(running, folder, name="net")
        yield running


def test_a_prediction_goes_on_with_its_callers_trace(traced: Api, receiver: Receiver) -> None:
    body = {"inputs": {INPUT: rows(2).tolist()}}
    assert traced.client.post("/v1/models/net/predict", json=body, headers=CALLER).status_code == 200
    spans = receiver.spans(3)
    server = spans["predict net"]
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, CALLERS_SPAN)
    assert {spans[name].parent_span_id for name in ("queue", "compute")} == {server.span_id}
    told = attributes(server)
    assert (told["octet.variant"], told["octet.outcome"], told["octet.protocol"]) == ("float32", "ok", "predict")


def test_the_protocols_route_says_so_and_a_body_that_does_not_fit_why(traced: Api, receiver: Receiver) -> None:
    tensor = {"name": INPUT, "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
    assert traced.client.post("/v2/models/net/infer", json={"inputs": [tensor]}).status_code == 422
    (span,) = receiver.spans(1).values()
    assert (attributes(span)["octet.protocol"], attributes(span)["error.type"]) == ("v2", "invalid")


def test_a_variable_of_the_frameworks_own_sends_nothing_more(traced: Api, receiver: Receiver) -> None:
    assert traced.app._telemetry["auto_configure"] is False
    traced.client.get("/livez")
    assert receiver.waiting == 0
