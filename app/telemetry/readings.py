"""Values read from the store and Redis, refreshed in the background: `/metrics` never waits for either."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.domain.jobs import Job, JobState
from app.domain.names import Reference
from app.domain.reports import Report
from app.domain.training import TrainingProgress
from app.domain.variants import FLOAT32, Variant

MOST_TRAINING = 100
"""Jobs whose training is shown: each is a few series."""

_VARIANT = ("model", "version", "variant")
_VERSION = ("model", "version")
_TRAINING = {
    "step": "Finished steps of a training.",
    "steps": "Steps that it was asked for.",
    "loss": "Mean over its last steps.",
    "score": "Loss of its held-out rows.",
    "learning_rate": "Of its last step.",
    "rows_per_second": "Of all its processes together.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFacts:
    """What is shown about a published variant; None where its report does not say."""

    labels: tuple[str, str, str]
    size_bytes: int
    accuracy: float | None = None
    float32_accuracy: float | None = None
    agreement: float | None = None


def facts_of(variant: Variant, report: Report | None) -> VariantFacts:
    """Take from a variant and its report what is shown."""
    measured = report.accuracy.measured if report is not None and report.accuracy is not None else {}
    fidelity = report.fidelity.get(variant.name) if report is not None else None
    return VariantFacts(
        labels=(variant.model, str(variant.version), variant.name),
        size_bytes=variant.artifact.size_bytes,
        accuracy=measured[variant.name].value if variant.name in measured else None,
        float32_accuracy=measured[FLOAT32].value if FLOAT32 in measured else None,
        agreement=fidelity.agreement.value if fidelity is not None and fidelity.agreement is not None else None,
    )


def training_of(jobs: Iterable[Job]) -> dict[tuple[str, str], TrainingProgress]:
    """Return where training stands, by model and version; of several jobs on one version, the newest one's."""
    found: dict[tuple[str, str], TrainingProgress] = {}
    for job in sorted(jobs, key=lambda job: job.created_at):
        if job.training_progress is not None and job.model is not None:
            model = Reference.parse(job.model)
            found[model.name, str(model.version)] = job.training_progress
    return found


@dataclass(slots=True, kw_only=True)
class Readings:
    """The last reading: mutable, because it is replaced piece by piece."""

    redis_up: bool = False
    queue_depth: int = 0
    jobs: Mapping[JobState, int] = field(default_factory=lambda: dict.fromkeys(JobState, 0))
    variants: tuple[VariantFacts, ...] = ()
    training: Mapping[tuple[str, str], TrainingProgress] = field(default_factory=dict)


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
        yield from self._training()
        yield from self._variants()

    def _training(self) -> Iterable[GaugeMetricFamily]:
        for name, text in _TRAINING.items():
            family = GaugeMetricFamily(f"octet_training_{name}", text, labels=_VERSION)
            for labels, progress in self._readings.training.items():
                value: float | None = getattr(progress, name)
                if value is not None:
                    family.add_metric(labels, value)
            yield family

    def _variants(self) -> Iterable[GaugeMetricFamily]:
        size = GaugeMetricFamily("octet_artifact_bytes", "Size of an artifact.", labels=_VARIANT)
        accuracy = GaugeMetricFamily("octet_variant_accuracy", "Top-1, from the report.", labels=(*_VARIANT, "kind"))
        agreement = GaugeMetricFamily("octet_variant_agreement", "Rows answered as float32 does.", labels=_VARIANT)
        for facts in self._readings.variants:
            size.add_metric(facts.labels, facts.size_bytes)
            if facts.accuracy is not None:
                accuracy.add_metric((*facts.labels, "variant"), facts.accuracy)
            if facts.float32_accuracy is not None:
                accuracy.add_metric((*facts.labels, "float32"), facts.float32_accuracy)
            if facts.agreement is not None:
                agreement.add_metric(facts.labels, facts.agreement)
        yield from (size, accuracy, agreement)
