"""What answers of every inference protocol over HTTP have in common. Knows neither form."""

from typing import Protocol

from app.domain.variants import Variant


class Answered(Protocol):
    """Who answered, and how long it took."""

    @property
    def variant(self) -> Variant: ...
    @property
    def queue_seconds(self) -> float: ...
    @property
    def compute_seconds(self) -> float: ...


def headers_of(made: Answered) -> dict[str, str]:
    """Return the headers that say who answered and how long it took."""
    return {
        "Octet-Model": made.variant.model,
        "Octet-Version": str(made.variant.version),
        "Octet-Variant": made.variant.name,
        "Octet-Queue-Ms": f"{milliseconds(made.queue_seconds):.3f}",
        "Octet-Compute-Ms": f"{milliseconds(made.compute_seconds):.3f}",
    }


def milliseconds(seconds: float) -> float:
    """Write a duration as answers do: in milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)
