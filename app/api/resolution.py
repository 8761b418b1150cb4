"""Which variant answers, remembered for a moment: a prediction usually costs the store nothing."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from app.catalogue.routing import Routing
from app.catalogue.shelf import Shelf
from app.domain.models import ModelManifest
from app.domain.names import Reference
from app.domain.preprocessing import ImagePreprocessing
from app.domain.variants import Variant

KEEP_SECONDS = 1.0
MOST_KEPT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A variant, and how images become its input."""

    variant: Variant
    preprocessing: ImagePreprocessing | None


class Resolver:
    """Remembers an answer for at most a second, so a new route is in force everywhere after that.

    Failures are not remembered.
    """

    def __init__(
        self, routing: Routing, models: Shelf[ModelManifest], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._routing = routing
        self._models = models
        self._clock = clock
        self._kept: dict[Reference, tuple[float, Resolved]] = {}

    async def resolve(self, reference: Reference) -> Resolved:
        """Return what answers for a reference.

        Raises:
            ModelNotFound, ModelNotReady, VariantNotFound: nothing can.
        """
        until, kept = self._kept.get(reference, (0.0, None))
        if kept is not None and self._clock() < until:
            return kept
        variant = await self._routing.resolve(reference)
        manifest = (await self._models.get(variant.model, variant.version)).ready()
        resolved = Resolved(variant=variant, preprocessing=manifest.preprocessing)
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[reference] = (self._clock() + KEEP_SECONDS, resolved)
        return resolved

    def forget(self) -> None:
        """Ask the store again next time: a route has changed."""
        self._kept.clear()
