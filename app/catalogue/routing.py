"""Which variant of a model answers: numbered records, the newest in force, all of them the history."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from app.catalogue.records import from_json, to_json
from app.catalogue.shelf import Shelf
from app.catalogue.store import Store
from app.catalogue.variants import Variants
from app.domain.errors import RecordUnreadable, RequestInvalid
from app.domain.models import ModelManifest
from app.domain.names import Reference
from app.domain.routing import Route
from app.domain.variants import FLOAT32, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Who may answer for a reference.

    Attributes:
        variants: of one version, by name.
        shares: how often each answers, under the same names; they sum up to 1.
    """

    manifest: ModelManifest
    variants: Mapping[str, Variant]
    shares: Mapping[str, float]


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

    async def record(self, decided: Route) -> Route:
        """Put a decision in force; return it with the number and the time that it got."""
        number = max(await self._numbers(decided.model), default=0) + 1
        while True:
            route = replace(decided, number=number, created_at=datetime.now(UTC))
            if await self._store.create(f"models/{route.model}/routing/{number}.json", to_json(route)):
                return route
            number += 1

    async def resolve(self, reference: Reference) -> Candidates:
        """Return who may answer for a reference.

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
        shares = {reference.variant or FLOAT32: 1.0}
        if reference.variant is None and route is not None and route.version == manifest.version:
            shares = route.shares
        variants = {name: await self._variants.get(reference.name, manifest.version, name) for name in shares}
        return Candidates(manifest=manifest, variants=variants, shares=shares)

    async def _read(self, model: str, number: int) -> Route | None:
        data = await self._store.read(path := f"models/{model}/routing/{number}.json")
        try:
            return from_json(Route, data, path=path) if data is not None else None
        except RequestInvalid as error:
            raise RecordUnreadable(f"The store's {path!r} cannot be read: restore it from a backup.") from error

    async def _numbers(self, model: str) -> list[int]:
        files = await self._store.files(f"models/{model}/routing")
        return [int(name.removesuffix(".json")) for name in files if name.removesuffix(".json").isdigit()]
