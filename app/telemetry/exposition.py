"""What `/metrics` leaves out: the series of variants that nobody has loaded or used for long."""

import time
from collections.abc import Iterable, Mapping

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

USED = "octet_variant_used_timestamp_seconds"
KEPT_SECONDS = 3600.0
"""Longer than any alert looks back, so that none sees a counter end."""

_Labels = tuple[str, str, str]


class Recent(Collector):
    """Shows what another collector collects, but of a variant only while it was used within `KEPT_SECONDS`.

    A shared file of metrics keeps every series until its process ends; without this a gateway that has served many
    versions would show them all for ever.
    """

    def __init__(self, shown: Collector) -> None:
        self._shown = shown

    def collect(self) -> Iterable[Metric]:
        families = list(self._shown.collect())
        stale = _stale(families, before=time.time() - KEPT_SECONDS)
        for family in families:
            if stale:
                family.samples = [sample for sample in family.samples if _variant(sample.labels) not in stale]
            yield family


def _stale(families: Iterable[Metric], *, before: float) -> set[_Labels | None]:
    """Return the variants whose last use, by whichever process, lies before a time."""
    used = next((family for family in families if family.name == USED), None)
    samples = used.samples if used is not None else ()
    return {_variant(sample.labels) for sample in samples if sample.value < before}


def _variant(labels: Mapping[str, str]) -> _Labels | None:
    if "variant" not in labels:
        return None
    return labels["model"], labels["version"], labels["variant"]
