"""Octet's Prometheus instruments; docs/metrics.md is their list. Made once per process, never on import.

With `PROMETHEUS_MULTIPROC_DIR` set before the start, every process of a machine writes its values into that folder and
`/metrics` adds them up; that is how several gateway processes and a worker show one registry.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, start_http_server
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app.telemetry.exposition import USED, Recent
from app.telemetry.folder import FOLDER_VARIABLE, lives
from app.telemetry.histograms import BulkHistogram
from app.telemetry.meters import Labels, VariantMeters
from app.telemetry.tracing import Traces

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
JOB_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
LOAD_SECONDS = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_VARIANT = ("model", "version", "variant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What docs/metrics.md says of an instrument; counters without their `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]


class Instruments:
    """The values one process observes.

    Args:
        version: of Octet, for `octet_build_info`.
        leaves: the exceptions with which a request ends whose client is gone, beside a cancelled task.

    Attributes:
        traces: records every prediction as a span too; None where traces go nowhere.
        descriptions: of every instrument.
    """

    def __init__(self, *, version: str, leaves: tuple[type[BaseException], ...] = ()) -> None:
        self._leaves = leaves
        self.traces: Traces | None = None
        self.descriptions: list[Description] = []
        self._registry = CollectorRegistry()
        self._collectors: list[Collector] = []
        self._meters: dict[Labels, VariantMeters] = {}
        self._observe_predictions()
        self._observe_runners()
        self._observe_loads()
        self._observe_tuning()
        self.job_duration = self._histogram(
            "octet_job_duration_seconds", "One attempt at a job.", ("kind", "outcome"), JOB_SECONDS
        )
        self.http_requests = self._counter("octet_http_requests", "HTTP requests.", ("route", "method", "status"))
        self.upload_bytes = self._counter("octet_upload_bytes", "Bytes received.", ("kind",))
        self._gauge("octet_build_info", "Always 1.", ("version",), mode="max").labels(version).set(1)

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
        self.requests_in_flight = self._live_sum("octet_requests_in_flight", "Predictions now.", ())
        self.variant_in_flight = self._live_sum("octet_variant_requests_in_flight", "Predictions now.", _VARIANT)
        self.requests_rejected = self._counter(
            "octet_requests_rejected", "Predictions without an answer, by why.", (*_VARIANT, "reason")
        )
        self.request_retries = self._counter(
            "octet_request_retries", "Requests sent again after a runner died.", _VARIANT
        )
        self.variant_used = self._gauge(USED, "When it was last loaded or asked for.", _VARIANT, mode="max")
        self.segment_bytes = self._live_sum("octet_segment_bytes", "Shared memory for requests.", _VARIANT)

    def _observe_runners(self) -> None:
        self.variants_loaded = self._live_sum("octet_variants_loaded", "Runners that are ready.", ())
        self.runners_ready = self._live_sum("octet_runners_ready", "Runners that are ready.", _VARIANT)
        self.runner_memory = self._live_sum(
            "octet_runner_memory_bytes", "Memory of the runner's process.", (*_VARIANT, "kind")
        )
        self.runner_queued_rows = self._live_sum("octet_runner_queued_rows", "Rows that wait.", _VARIANT)
        self.runner_requests = self._live_sum("octet_runner_requests", "Requests that wait or run.", _VARIANT)
        self.runner_mode = self._live_sum("octet_runner_mode", "Runners by their mode.", (*_VARIANT, "mode"))
        self.runner_rows = self._counter("octet_runner_rows", "Rows computed.", _VARIANT)
        self.runner_refused = self._counter(
            "octet_runner_refused", "Requests that a runner gave up.", (*_VARIANT, "reason")
        )
        self.runner_stage_seconds = self._counter(
            "octet_runner_stage_seconds", "Time of requests in a runner.", (*_VARIANT, "stage")
        )
        self.batch_size = self._histogram("octet_batch_size", "Rows per run of the engine.", _VARIANT, ROWS)

    def _observe_loads(self) -> None:
        self.runner_restarts = self._counter(
            "octet_runner_restarts", "Runners that died and were started again.", _VARIANT
        )
        self.runner_load = self._histogram(
            "octet_runner_load_duration_seconds",
            "From a process' start until ready.",
            (*_VARIANT, "start"),
            LOAD_SECONDS,
        )

    def _observe_tuning(self) -> None:
        chosen = (*_VARIANT, "setting")
        self.tuning_streams = self._gauge("octet_tuning_streams", "Requests side by side.", chosen)
        self.tuning_threads = self._gauge("octet_tuning_threads", "Threads of all streams.", chosen)
        self.tuning_batch = self._gauge("octet_tuning_batch_rows", "Rows of each run.", chosen)
        self.tuning_p50 = self._gauge("octet_tuning_p50_seconds", "Measured when loaded.", chosen)
        self.tuning_rate = self._gauge("octet_tuning_rows_per_second", "Measured when loaded.", chosen)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> BulkHistogram:
        self.descriptions.append(Description(name=name, kind="histogram", labels=labels))
        return BulkHistogram(name, text, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        self.descriptions.append(Description(name=name, kind="counter", labels=labels))
        return Counter(name, text, labels, registry=self._registry)

    def _live_sum(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        """Return a gauge that `/metrics` adds up over the processes that live."""
        return self._gauge(name, text, labels, mode="livesum")

    def _gauge(
        self, name: str, text: str, labels: tuple[str, ...], *, mode: Literal["livesum", "livemax", "max"] = "livemax"
    ) -> Gauge:
        """Return a gauge; `mode` says what `/metrics` makes of several processes' values."""
        self.descriptions.append(Description(name=name, kind="gauge", labels=labels))
        return Gauge(name, text, labels, registry=self._registry, multiprocess_mode=mode)

    def meters(self, labels: Labels) -> VariantMeters:
        """Return what observes one variant's predictions, made once: labels cost more than what they count.

        Args:
            labels: model, version and variant, all of which exist: they become series.
        """
        found = self._meters.get(labels)
        if found is None:
            self.used(labels)
            found = self._meters[labels] = VariantMeters(
                labels,
                durations=self.request_duration,
                queue=self.queue_duration.labels(*labels),
                compute=self.compute_duration.labels(*labels),
                in_flight=self.variant_in_flight.labels(*labels),
                rejected=self.requests_rejected,
                used=self.variant_used.labels(*labels),
                leaves=self._leaves,
                traces=self.traces,
            )
        return found

    def used(self, labels: Labels) -> None:
        """Note that a variant is in use now: its series stay for another while."""
        self.variant_used.labels(*labels).set(time.time())

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
            counted: Collector = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        else:
            counted = _Others((self._registry,))
        shown.register(Recent(counted))
        shown.register(_Others(self._collectors))
        return generate_latest(shown)

    def serve(self, *, port: int, address: str) -> None:
        """Answer `/metrics` from a thread, for a process that serves nothing else."""
        start_http_server(port, addr=address, registry=self._registry)


class _Others(Collector):
    """Shows what other collectors collect."""

    def __init__(self, others: Iterable[Collector]) -> None:
        self._others = others

    def collect(self) -> Iterable[Metric]:
        for other in self._others:
            yield from other.collect()
