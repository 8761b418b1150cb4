"""Traces of predictions, sent to a real receiver over OTLP/HTTP."""

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from app.domain.errors import QueueFull, RunnerCrashed, SignatureMismatch
from app.telemetry.instruments import Instruments
from app.telemetry.otlp import open_traces
from app.telemetry.tracing import note_grpc_caller, note_http_caller, traces_url
from tests.receiver import Receiver, attributes, receiving
from tests.running import clean_environment, free_port

pytestmark = pytest.mark.anyio

TRACE, CALLERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NET = ("net", "3", "int8")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@asynccontextmanager
async def traced(endpoint: str, *, ratio: float = 1) -> AsyncIterator[Instruments]:
    instruments = Instruments(version="1")
    async with open_traces(endpoint=endpoint, ratio=ratio, version="1") as instruments.traces:
        yield instruments


def predict(instruments: Instruments, error: Exception | None = None) -> None:
    with instruments.meters(NET).prediction(began=time.perf_counter() - 0.5) as observed:
        if error is not None:
            raise error
        observed.answered(queue_seconds=0.1, compute_seconds=0.2, rows=4)


def called(*, sampled: bool = True) -> None:
    value = f"00-{TRACE}-{CALLERS_SPAN}-{'01' if sampled else '00'}"
    note_http_caller("/v2/models/net/infer", [(b"accept", b"*/*"), (b"traceparent", value.encode())])


async def test_a_prediction_is_a_server_span_with_its_wait_and_its_computation(receiver: Receiver) -> None:
    async with traced(receiver.url) as instruments:
        predict(instruments)
    spans = receiver.spans(3)
    server, queue, compute = spans["predict net"], spans["queue"], spans["compute"]
    assert server.kind == Span.SPAN_KIND_SERVER
    assert {queue.parent_span_id, compute.parent_span_id} == {server.span_id}
    assert server.start_time_unix_nano <= queue.start_time_unix_nano
    assert queue.end_time_unix_nano == compute.start_time_unix_nano
    assert compute.end_time_unix_nano <= server.end_time_unix_nano
    assert compute.end_time_unix_nano - compute.start_time_unix_nano == pytest.approx(0.2e9)
    assert queue.end_time_unix_nano - queue.start_time_unix_nano == pytest.approx(0.1e9)
    assert receiver.services == {"octet"}


async def test_a_span_says_what_answered_and_how(receiver: Receiver) -> None:
    async with traced(receiver.url) as instruments:
        predict(instruments)
    assert attributes(receiver.spans(3)["predict net"]) == {
        "octet.model": "net",
        "octet.version": 3,
        "octet.variant": "int8",
        "octet.outcome": "ok",
        "octet.protocol": "predict",
        "octet.batch_rows": 4,
    }


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (RunnerCrashed("dead"), "crashed", Status.STATUS_CODE_ERROR),
        (SignatureMismatch("unfit"), "invalid", Status.STATUS_CODE_UNSET),
    ],
)
async def test_a_prediction_without_an_answer_says_why(
    receiver: Receiver, error: Exception, reason: str, status: int
) -> None:
    async with traced(receiver.url) as instruments:
        with pytest.raises(type(error)):
            predict(instruments, error)
    (span,) = receiver.spans(1).values()
    assert attributes(span)["error.type"] == reason
    assert span.status.code == status


async def test_a_prediction_that_is_refused_early_is_traced_too(receiver: Receiver) -> None:
    async with traced(receiver.url) as instruments:
        instruments.meters(NET).refused(QueueFull("full"), began=time.perf_counter())
    (span,) = receiver.spans(1).values()
    assert attributes(span)["error.type"] == "queue_full"


async def test_the_callers_trace_goes_on(receiver: Receiver) -> None:
    async with traced(receiver.url, ratio=0) as instruments:
        called()
        predict(instruments)
    span = receiver.spans(3)["predict net"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLERS_SPAN)
    assert attributes(span)["octet.protocol"] == "v2"


async def test_a_call_brings_its_trace_in_its_metadata(receiver: Receiver) -> None:
    async with traced(receiver.url) as instruments:
        note_grpc_caller([("traceparent", f"00-{TRACE}-{CALLERS_SPAN}-01")])
        predict(instruments)
    span = receiver.spans(3)["predict net"]
    assert (span.trace_id.hex(), attributes(span)["octet.protocol"]) == (TRACE, "grpc")


async def test_a_trace_that_the_caller_drops_is_dropped(receiver: Receiver) -> None:
    async with traced(receiver.url) as instruments:
        called(sampled=False)
        predict(instruments)
    assert receiver.waiting == 0


async def test_without_a_caller_the_ratio_decides(receiver: Receiver) -> None:
    async with traced(receiver.url, ratio=0) as instruments:
        predict(instruments)
    assert receiver.waiting == 0


@pytest.mark.parametrize("header", [b"nonsense", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"x" * 100_000])
async def test_a_traceparent_that_is_none_begins_a_new_trace(receiver: Receiver, header: bytes) -> None:
    async with traced(receiver.url) as instruments:
        note_http_caller("/predict", [(b"traceparent", header)])
        predict(instruments)
    span = receiver.spans(3)["predict net"]
    assert span.parent_span_id == b""


async def test_a_receiver_that_fails_or_is_not_there_hurts_no_prediction(receiver: Receiver) -> None:
    receiver.status = 503
    for endpoint in (receiver.url, f"http://127.0.0.1:{free_port()}"):
        async with traced(endpoint) as instruments:
            for _ in range(3000):  # more than the queue holds
                predict(instruments)
    assert receiver.asked.is_set()
    assert b"octet_request_duration_seconds_count" in instruments.exposition()


@pytest.mark.parametrize("endpoint", ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"])
def test_an_endpoint_gets_the_standard_path_once(endpoint: str) -> None:
    assert traces_url(endpoint) == "http://c:4318/v1/traces"


def test_without_an_endpoint_nothing_that_sends_traces_is_imported() -> None:
    code = """
import sys, app.main, app.hosting
sends = ("opentelemetry.exporter", "opentelemetry.sdk.trace", "app.telemetry.otlp")
print([name for name in sys.modules if name.startswith(sends)])
"""
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean_environment() | named, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
