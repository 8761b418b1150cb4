"""Metrics: what can be said about answers. The worker's module `workers.measure.metrics.<name>` computes each."""

from dataclasses import dataclass
from typing import Literal

Labels = Literal["class", "class_map", "values", "none"]
"""What a metric compares answers with: one class per row, a map of classes per row, real numbers, or float32 alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricKind:
    """One line of the table.

    Attributes:
        labels: what the evaluation rows must bring.
        better: whether more or less of it is better.
        unit: of a value, as a reader says it.
        budget: whether a budget may be set on it.
        meaning: half a sentence for a reader.
    """

    labels: Labels
    better: Literal["higher", "lower"]
    unit: str
    budget: bool
    meaning: str


def _kind(
    labels: Labels, better: Literal["higher", "lower"], unit: str, meaning: str, *, budget: bool = True
) -> MetricKind:
    return MetricKind(labels=labels, better=better, unit=unit, budget=budget, meaning=meaning)


METRICS: dict[str, MetricKind] = {
    "top1": _kind("class", "higher", "share", "share of rows whose best-scored class is the label"),
    "top5": _kind("class", "higher", "share", "share of rows whose label is among the five best-scored classes"),
    "f1": _kind("class", "higher", "share", "harmonic mean of precision and recall, mean over classes"),
    "miou": _kind("class_map", "higher", "share", "intersection over union of the maps, mean over classes"),
    "mae": _kind("values", "lower", "value", "mean absolute error"),
    "rmse": _kind("values", "lower", "value", "root of the mean squared error"),
    "psnr": _kind("values", "higher", "dB", "peak signal-to-noise ratio, mean over rows"),
    "agreement": _kind("none", "higher", "share", "share of rows with the same best-scored class as float32"),
    "retrieval": _kind("none", "higher", "share", "share of a row's ten nearest rows in float32 that stay so"),
    "cosine": _kind("none", "higher", "cosine", "cosine with float32's outputs, mean over rows"),
    "sqnr": _kind("none", "higher", "dB", "energy of float32's outputs over that of the difference", budget=False),
    "kl": _kind("none", "lower", "nats", "KL divergence of the class probabilities from float32's", budget=False),
}
