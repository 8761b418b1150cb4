"""The repository over gRPC: what can be served, and loading and unloading it."""

from collections.abc import Collection
from dataclasses import dataclass

from pydantic import ValidationError

from app.api.dependencies import Services
from app.api.loading import load_all, reason_unloaded, unload_all
from app.api.model_paths import reference_in
from app.api.schemas.repository import LoadParameters, LoadRequest
from app.api.validation import explain
from app.catalogue.shelf import Entry
from app.domain.errors import RequestInvalid
from app.domain.models import ModelManifest
from app.domain.serving import Knobs
from app.rpc import open_inference_pb2 as pb
from app.rpc.calls import Call
from app.rpc.parameters import values_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """The methods of the model repository extension."""

    services: Services

    async def index(self, asked: pb.RepositoryIndexRequest, _call: Call) -> pb.RepositoryIndexResponse:
        """List every version of every model; READY means that a runner holds one of its variants."""
        held = {(each.model, each.version) for each in await self.services.pool.statistics()}
        models = [
            _indexed(entry, held)
            for name in await self.services.models.names()
            for entry in await self.services.models.versions(name)
        ]
        return pb.RepositoryIndexResponse(models=[each for each in models if each.state == "READY" or not asked.ready])

    async def load(self, asked: pb.RepositoryModelLoadRequest, _call: Call) -> pb.RepositoryModelLoadResponse:
        """Start the runners of who answers for a model now, and return when they are ready."""
        knobs = _knobs(asked)
        await load_all(self.services, reference_in(asked.model_name), knobs=knobs)
        return pb.RepositoryModelLoadResponse()

    async def unload(self, asked: pb.RepositoryModelUnloadRequest, _call: Call) -> pb.RepositoryModelUnloadResponse:
        """Stop the runners of who answers for a model once their requests are answered; the next one starts them."""
        await unload_all(self.services, reference_in(asked.model_name))
        return pb.RepositoryModelUnloadResponse()


def _knobs(asked: pb.RepositoryModelLoadRequest) -> Knobs | None:
    """Read what is pinned of the runners: the parameters that loading takes over HTTP too."""
    try:
        return LoadRequest(parameters=LoadParameters.model_validate(values_of(asked.parameters))).knobs()
    except ValidationError as error:
        allowed = list(LoadParameters.model_fields)
        raise RequestInvalid(explain(error.errors(), of="request", allowed=allowed)) from error


def _indexed(entry: Entry[ModelManifest], held: Collection[tuple[str, int]]) -> pb.RepositoryIndexResponse.ModelIndex:
    name, version = entry.upload.name, entry.upload.version
    ready = (name, version) in held
    return pb.RepositoryIndexResponse.ModelIndex(
        name=name,
        version=str(version),
        state="READY" if ready else "UNAVAILABLE",
        reason="" if ready else reason_unloaded(entry),
    )
