"""Sends predictions as OpenTelemetry spans over OTLP/HTTP, from a thread. Imported only where an endpoint is set."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.telemetry.tracing import CALLER, Caller, traces_url

EXPORT_SECONDS = 3
SEND_EVERY_SECONDS = 1.0
CLOSE_SECONDS = 3
_OWN_FAILURES = frozenset({"unavailable", "crashed", "timeout", "error"})


@asynccontextmanager
async def open_traces(*, endpoint: str, ratio: float, version: str) -> AsyncIterator["OtlpTraces"]:
    """Open the way to a collector. Spans that it does not take in time are dropped; no request waits for it.

    Args:
        endpoint: such as `http://collector:4318`.
        ratio: of the traces that begin here; one that a caller began is kept or not as the caller says.
    """
    exporter = OTLPSpanExporter(endpoint=traces_url(endpoint), timeout=EXPORT_SECONDS)
    provider = TracerProvider(
        sampler=ParentBased(ALWAYS_ON),  # of those that begin here `OtlpTraces` takes its share, for less
        resource=Resource({"service.name": "octet", "service.version": version}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=SEND_EVERY_SECONDS * 1000))
    try:
        yield OtlpTraces(provider.get_tracer("octet", version), ratio=ratio)
    finally:
        closing = asyncio.create_task(asyncio.to_thread(provider.shutdown))
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        if not closing.done():
            exporter.shutdown()  # type: ignore[no-untyped-call]  # it tries no more
        await closing


class OtlpTraces:
    """Makes one server span for a prediction, with a child for its wait and one for its computation."""

    def __init__(self, tracer: Tracer, *, ratio: float) -> None:
        self._tracer = tracer
        self._ratio = ratio
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        labels: tuple[str, str, str],
        *,
        outcome: str,
        reason: str | None,
        seconds: float,
        answered_seconds_ago: float | None,
        queue_seconds: float,
        compute_seconds: float,
        rows: int,
    ) -> None:
        """Record a prediction that ended just now."""
        caller = CALLER.get()
        if not caller.traceparent and random.random() >= self._ratio:  # noqa: S311 - no secret
            return
        ended = time.time_ns()
        began = ended - int(seconds * 1e9)
        span = self._server_span(labels[0], caller, began=began)
        if span.is_recording():
            self._describe(span, labels, caller, outcome=outcome, reason=reason)
            if answered_seconds_ago is not None:
                span.set_attribute("octet.batch_rows", rows)
                answered = ended - int(answered_seconds_ago * 1e9)
                computed = max(began, answered - int(compute_seconds * 1e9))
                asked = max(began, computed - int(queue_seconds * 1e9))
                within = set_span_in_context(span)
                self._child("queue", within, began=asked, ended=computed)
                self._child("compute", within, began=computed, ended=answered)
        span.end(end_time=ended)

    def _server_span(self, model: str, caller: Caller, *, began: int) -> Span:
        parent = Context()
        if caller.traceparent:
            carrier = {"traceparent": caller.traceparent, "tracestate": caller.tracestate}
            parent = self._propagator.extract(carrier, parent)
        return self._tracer.start_span(f"predict {model}", context=parent, kind=SpanKind.SERVER, start_time=began)

    def _describe(
        self, span: Span, labels: tuple[str, str, str], caller: Caller, *, outcome: str, reason: str | None
    ) -> None:
        model, version, variant = labels
        span.set_attributes(
            {
                "octet.model": model,
                "octet.version": int(version),
                "octet.variant": variant,
                "octet.outcome": outcome,
                "octet.protocol": caller.protocol,
            }
        )
        if reason is not None:
            span.set_attribute("error.type", reason)
        if outcome in _OWN_FAILURES:
            span.set_status(Status(StatusCode.ERROR))

    def _child(self, name: str, within: Context, *, began: int, ended: int) -> None:
        self._tracer.start_span(name, context=within, start_time=began).end(end_time=ended)
