"""The standard health service of gRPC: for the server, its inference service, and every model by its name."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from grpc_health.v1.health_pb2 import (  # type: ignore[import-untyped]
    DESCRIPTOR,
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from app.api.dependencies import Services
from app.api.resolution import Resolver
from app.domain.errors import Conflict, InvalidInput, NotFound, Unavailable
from app.domain.names import Reference
from app.rpc.calls import Call
from app.rpc.readiness import Readiness

SERVICE = DESCRIPTOR.services_by_name["Health"]
SERVER = ("", "inference.GRPCInferenceService")
LOOK_EVERY_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The methods of the health service."""

    services: Services
    resolver: Resolver
    readiness: Readiness

    async def check(self, asked: HealthCheckRequest, _call: Call) -> HealthCheckResponse:
        """Say how a service or a model is.

        Raises:
            NotFound: there is no such service or model.
        """
        status = await self._status(asked.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound(f"There is no service and no model {asked.service[:80]!r}: ask for a model, or for nothing.")
        return HealthCheckResponse(status=status)

    async def list(self, _asked: HealthListRequest, _call: Call) -> HealthListResponse:
        """Say how every service is; models are asked for one by one."""
        status = HealthCheckResponse(status=await self._status(""))
        return HealthListResponse(statuses=dict.fromkeys(SERVER, status))

    async def watch(self, asked: HealthCheckRequest, _call: Call) -> AsyncGenerator[HealthCheckResponse, None]:
        """Say how a service or a model is, and again whenever that changes."""
        told: int | None = None
        while True:
            status = await self._status(asked.service)
            if status != told:
                yield HealthCheckResponse(status=status)
                told = status
            if told == HealthCheckResponse.NOT_SERVING and self.services.stopping.is_set():
                return
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        if not await self.readiness.now():
            return HealthCheckResponse.NOT_SERVING
        if service in SERVER:
            return HealthCheckResponse.SERVING
        try:
            await self.resolver.resolve(Reference.parse(service))
        except (NotFound, InvalidInput):
            return HealthCheckResponse.SERVICE_UNKNOWN
        except (Conflict, Unavailable):
            return HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse.SERVING
