"""Values read from the store and Redis, refreshed in the background: `/metrics` never waits for either."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.domain.jobs import JobState
from app.domain.reports import Report
from app.domain.variants import Variant

_VARIANT = ("model", "version", "variant")


@dataclass(slots=True, kw_only=True)
class Readings:
    """The last reading: mutable, because it is replaced piece by piece."""

    redis_up: bool = False
    queue_depth: int = 0
    jobs: Mapping[JobState, int] = field(default_factory=lambda: dict.fromkeys(JobState, 0))
    variants: tuple[tuple[Variant, Report | None], ...] = ()


class ReadingsCollector(Collector):
    """Shows the last reading as gauges."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> Iterable[GaugeMetricFamily]:
        yield GaugeMetricFamily("octet_redis_up", "1 if Redis answered.", value=float(self._readings.redis_up))
        yield GaugeMetricFamily("octet_queue_depth", "Jobs waiting for a worker.", value=self._readings.queue_depth)
        jobs = GaugeMetricFamily("octet_jobs", "Jobs that Redis knows.", labels=("state",))
        for state, count in self._readings.jobs.items():
            jobs.add_metric((state,), count)
        yield jobs
        yield from self._variants()

    def _variants(self) -> Iterable[GaugeMetricFamily]:
        size = GaugeMetricFamily("octet_artifact_bytes", "Size of an artifact.", labels=_VARIANT)
        accuracy = GaugeMetricFamily("octet_variant_accuracy", "Top-1, from the report.", labels=(*_VARIANT, "kind"))
        agreement = GaugeMetricFamily("octet_variant_agreement", "Rows answered as float32 does.", labels=_VARIANT)
        for variant, report in self._readings.variants:
            labels = (variant.model, str(variant.version), variant.name)
            size.add_metric(labels, variant.artifact.size_bytes)
            if report is None:
                continue
            if report.accuracy is not None and variant.name in report.accuracy.measured:
                accuracy.add_metric((*labels, "variant"), report.accuracy.measured[variant.name].value)
                accuracy.add_metric((*labels, "float32"), report.accuracy.measured["float32"].value)
            fidelity = report.fidelity.get(variant.name)
            if fidelity is not None and fidelity.agreement is not None:
                agreement.add_metric(labels, fidelity.agreement.value)
        yield from (size, accuracy, agreement)
