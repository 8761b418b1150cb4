"""Which variant of a model answers: numbered records, the newest in force, all of them the history."""

from datetime import UTC, datetime

from app.catalogue.records import from_json, to_json
from app.catalogue.shelf import Shelf
from app.catalogue.store import Store
from app.catalogue.variants import Variants
from app.domain.models import ModelManifest
from app.domain.names import Reference
from app.domain.routing import Route
from app.domain.variants import FLOAT32, Variant


class Routing:
    """The routing of every model."""

    def __init__(self, store: Store, *, models: Shelf[ModelManifest], variants: Variants) -> None:
        self._store = store
        self._models = models
        self._variants = variants

    async def history(self, model: str) -> list[Route]:
        """Return every decision, oldest first."""
        numbers = sorted(await self._numbers(model))
        read = [await self._read(model, number) for number in numbers]
        return [route for route in read if route is not None]

    async def current(self, model: str) -> Route | None:
        """Return the decision in force, None if none was ever made."""
        numbers = await self._numbers(model)
        return await self._read(model, max(numbers)) if numbers else None

    async def choose(self, model: str, *, version: int, variant: str) -> Route:
        """Let `variant` of `version` answer from now on."""
        number = max(await self._numbers(model), default=0) + 1
        while True:
            route = Route(number=number, model=model, version=version, variant=variant, created_at=datetime.now(UTC))
            if await self._store.create(f"models/{model}/routing/{number}.json", to_json(route)):
                return route
            number += 1

    async def resolve(self, reference: Reference) -> Variant:
        """Return the variant that answers for a reference.

        A bare name is answered by the route in force. A reference that names a version or a variant means what it
        means everywhere: without a version the newest that is ready, without a variant the route's, if that is of
        this version, else `float32`.

        Raises:
            ModelNotFound, ModelNotReady, VariantNotFound: nothing can answer.
        """
        route = await self.current(reference.name)
        bare = reference.version is None and reference.variant is None
        version = route.version if route is not None and bare else reference.version
        manifest = (await self._models.resolve(Reference(name=reference.name, version=version))).ready()
        routed = route.variant if route is not None and route.version == manifest.version else FLOAT32
        return await self._variants.get(reference.name, manifest.version, reference.variant or routed)

    async def _read(self, model: str, number: int) -> Route | None:
        data = await self._store.read(path := f"models/{model}/routing/{number}.json")
        return from_json(Route, data, path=path) if data is not None else None

    async def _numbers(self, model: str) -> list[int]:
        files = await self._store.files(f"models/{model}/routing")
        return [int(name.removesuffix(".json")) for name in files if name.removesuffix(".json").isdigit()]
