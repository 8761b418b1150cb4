"""Octet's Prometheus instruments; docs/metrics.md is their list. Made once per process, never on import.

With `PROMETHEUS_MULTIPROC_DIR` set before the start, every process of a machine writes its values into that folder and
`/metrics` adds them up; that is how several gateway processes and a worker show one registry.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app.telemetry.folder import FOLDER_VARIABLE, lives

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
JOB_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_VARIANT = ("model", "version", "variant")


class Instruments:
    """The values one process observes.

    Args:
        version: of Octet, for `octet_build_info`.
    """

    def __init__(self, *, version: str) -> None:
        self._registry = CollectorRegistry()
        self._collectors: list[Collector] = []
        self._observe_predictions()
        self._observe_runners()
        self.job_duration = self._histogram(
            "octet_job_duration_seconds", "One attempt at a job.", ("kind", "outcome"), JOB_SECONDS
        )
        self.http_requests = self._counter("octet_http_requests", "HTTP requests.", ("route", "method", "status"))
        self.upload_bytes = self._counter("octet_upload_bytes", "Bytes received.", ("kind",))
        build_info = Gauge(
            "octet_build_info", "Always 1.", ("version",), registry=self._registry, multiprocess_mode="max"
        )
        build_info.labels(version).set(1)

    def _observe_predictions(self) -> None:
        self.request_duration = self._histogram(
            "octet_request_duration_seconds", "A prediction, whole.", (*_VARIANT, "outcome"), SECONDS
        )
        self.queue_duration = self._histogram(
            "octet_queue_duration_seconds", "Sent to a runner until it computes.", _VARIANT, SECONDS
        )
        self.compute_duration = self._histogram(
            "octet_compute_duration_seconds", "Inside the engine.", _VARIANT, SECONDS
        )
        self.batch_size = self._histogram("octet_batch_size", "Rows per run of the engine.", _VARIANT, ROWS)
        self.requests_in_flight = self._live_sum("octet_requests_in_flight", "Predictions now.", ())

    def _observe_runners(self) -> None:
        self.runner_restarts = self._counter(
            "octet_runner_restarts", "Runners that died and were started again.", _VARIANT
        )
        self.request_retries = self._counter(
            "octet_request_retries", "Requests sent again after a runner died.", _VARIANT
        )
        self.variants_loaded = self._live_sum("octet_variants_loaded", "Runners that are ready.", ())
        self.runner_memory = self._live_sum(
            "octet_runner_memory_bytes", "Memory of the runner's process.", (*_VARIANT, "kind")
        )

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _live_sum(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        """Return a gauge that `/metrics` adds up over the processes that live."""
        return Gauge(name, text, labels, registry=self._registry, multiprocess_mode="livesum")

    def collect_also(self, collector: Collector) -> None:
        """Let `/metrics` show values that are read when it is asked, such as the queue's depth."""
        self._collectors.append(collector)

    def forget_dead(self) -> None:
        """Drop what processes left in the folder that ended without a word: their gauges say what is no more."""
        folder = os.environ.get(FOLDER_VARIABLE)
        for file in Path(folder).glob("gauge_live*_*.db") if folder else ():
            owner = file.stem.rpartition("_")[2]
            if owner.isdigit() and not lives(int(owner)):
                mark_process_dead(owner, folder)  # type: ignore[no-untyped-call]

    def exposition(self) -> bytes:
        """Return the values of every process of this machine in Prometheus' text format."""
        shown = CollectorRegistry()
        if os.environ.get(FOLDER_VARIABLE):
            MultiProcessCollector(shown)  # type: ignore[no-untyped-call]
        else:
            shown.register(_Others((self._registry,)))
        shown.register(_Others(self._collectors))
        return generate_latest(shown)

    def serve(self, *, port: int, address: str) -> None:
        """Answer `/metrics` from a thread, for a process that serves nothing else."""
        start_http_server(port, addr=address, registry=self._registry)


class _Others(Collector):
    """Shows what other collectors collect."""

    def __init__(self, others: Iterable[Collector]) -> None:
        self._others = others

    def collect(self) -> Iterable[object]:  # type: ignore[override]
        for other in self._others:
            yield from other.collect()
