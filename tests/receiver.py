"""An OpenTelemetry collector as far as tests need one: takes spans over OTLP/HTTP and remembers them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.running import free_port

SECONDS = 20.0


class Receiver:
    """What was sent to it.

    Attributes:
        url: its endpoint, without the path.
        status: with which it answers.
        services: the `service.name` of every message.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.status = 200
        self.services: set[str] = set()
        self.asked = threading.Event()
        self._spans: Queue[Span] = Queue()

    def take(self, path: str, body: bytes) -> None:
        """Take one message."""
        assert path == "/v1/traces"
        for one in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {pair.key: pair.value.string_value for pair in one.resource.attributes}
            self.services.add(named["service.name"])
            for scope in one.scope_spans:
                for span in scope.spans:
                    self._spans.put(span)

    def spans(self, count: int) -> dict[str, Span]:
        """Wait for so many spans; return them by name."""
        found = [self._spans.get(timeout=SECONDS) for _ in range(count)]
        return {span.name: span for span in found}

    @property
    def waiting(self) -> int:
        """How many came and were not asked for."""
        return self._spans.qsize()


def attributes(span: Span) -> dict[str, str | int]:
    """Return a span's attributes."""
    return {
        pair.key: pair.value.int_value if pair.value.HasField("int_value") else pair.value.string_value
        for pair in span.attributes
    }


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver on a free port."""
    receiver = Receiver(free_port())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.status == 200:
                receiver.take(self.path, body)
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            receiver.asked.set()

        def log_request(self, code: object = "-", size: object = "-") -> None:
            """Say nothing."""

    port = int(receiver.url.rpartition(":")[2])
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join(SECONDS)
