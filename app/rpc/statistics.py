"""What a model's runners have done since they started, in the protocol's messages."""

from dataclasses import dataclass
from typing import Any

from app.api.dependencies import Services
from app.api.model_paths import reference_in
from app.api.statistics import is_meant, model_statistics
from app.rpc import open_inference_pb2 as pb
from app.rpc.calls import Call

_OWN = "octet"  # what the protocol has no word for, and no field


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The method of the statistics extension."""

    services: Services

    async def of_model(self, asked: pb.ModelStatisticsRequest, _call: Call) -> pb.ModelStatisticsResponse:
        """Return what the runners of a model have done, or all runners if no model is named."""
        runners = await self.services.recent_statistics.told(self.services.pool.statistics)
        if not asked.name:
            return _response(model_statistics(runners, idle=()))
        reference = reference_in(asked.name, asked.version or None)
        manifest = (await self.services.routing.resolve(reference)).manifest
        meant = [runner for runner in runners if is_meant(reference, runner)]
        return _response(model_statistics(meant, idle=[(manifest.name, manifest.version)]))


def _response(entries: list[dict[str, Any]]) -> pb.ModelStatisticsResponse:
    return pb.ModelStatisticsResponse(model_stats=[_written(entry) for entry in entries])


def _written(entry: dict[str, Any]) -> pb.ModelStatistics:
    members = {name: value for name, value in entry.items() if name != _OWN}
    memory = [
        pb.MemoryUsage(type="CPU", id=runner["instance"], byte_size=runner["memory"]["pss_bytes"])
        for runner in entry[_OWN]
    ]
    return pb.ModelStatistics(**members, memory_usage=memory)
