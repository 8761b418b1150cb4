"""Load and unload what a reference names: what the repository extension of every protocol does."""

from app.api.dependencies import Services
from app.catalogue.shelf import Entry
from app.domain.models import ModelManifest
from app.domain.names import Reference
from app.domain.serving import Knobs


async def load_all(services: Services, reference: Reference, *, knobs: Knobs | None) -> None:
    """Start the runners of everything that may answer for a reference, and wait until they are ready."""
    for variant in (await services.routing.resolve(reference)).variants.values():
        await services.pool.load(variant, knobs=knobs)
    services.recent_statistics.forget()


async def unload_all(services: Services, reference: Reference) -> None:
    """Stop the runners of everything that may answer for a reference, once their requests are answered."""
    for variant in (await services.routing.resolve(reference)).variants.values():
        await services.pool.unload(variant)
    services.recent_statistics.forget()


def reason_unloaded(entry: Entry[ModelManifest]) -> str:
    """Say why no runner holds a version."""
    if entry.manifest is not None:
        return "not loaded: its first request loads it"
    return "still being imported" if entry.failure is None else entry.failure.message
