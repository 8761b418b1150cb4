"""What the server says of itself and of its models."""

from dataclasses import dataclass

from app import __version__
from app.api.dependencies import Services
from app.api.model_paths import reference_in
from app.api.resolution import Resolver
from app.domain.errors import Conflict, NotFound
from app.domain.tensors import PROTOCOL_NAMES, TensorSpec
from app.rpc import open_inference_pb2 as pb
from app.rpc.calls import Call
from app.rpc.readiness import Readiness

EXTENSIONS = ("classification", "model_repository", "schedule_policy", "statistics")


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptions:
    """The methods that tell how the server and its models are."""

    services: Services
    resolver: Resolver
    readiness: Readiness

    async def server_live(self, _asked: pb.ServerLiveRequest, _call: Call) -> pb.ServerLiveResponse:
        """Answer as long as the process runs."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _asked: pb.ServerReadyRequest, _call: Call) -> pb.ServerReadyResponse:
        """Say whether predictions can be answered."""
        return pb.ServerReadyResponse(ready=await self.readiness.now())

    async def model_ready(self, asked: pb.ModelReadyRequest, _call: Call) -> pb.ModelReadyResponse:
        """Say whether a model can answer: what is not loaded is loaded by the first request."""
        reference = reference_in(asked.name, asked.version or None)
        try:
            await self.resolver.resolve(reference)
        except (NotFound, Conflict):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(self, _asked: pb.ServerMetadataRequest, _call: Call) -> pb.ServerMetadataResponse:
        """Return the server's name and version, and what it speaks beyond the protocol's core."""
        return pb.ServerMetadataResponse(name="octet", version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, asked: pb.ModelMetadataRequest, _call: Call) -> pb.ModelMetadataResponse:
        """Return a model's tensors."""
        variant = (await self.resolver.resolve(reference_in(asked.name, asked.version or None))).variant
        versions = await self.services.models.versions(variant.model)
        return pb.ModelMetadataResponse(
            name=variant.model,
            versions=[str(entry.upload.version) for entry in versions if entry.manifest is not None],
            platform=f"{variant.execution.engine}_onnx",
            inputs=[_described(spec) for spec in variant.signature.inputs],
            outputs=[_described(spec) for spec in variant.signature.outputs],
        )


def _described(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    shape = [-1 if size is None else size for size in spec.shape]
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=PROTOCOL_NAMES[spec.dtype], shape=shape)
